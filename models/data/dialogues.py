"""Dialogues for training and evaluation: the customer's intent at a turn, and the agent's reply.

Reads published data sets in their formats and converts them to turns, labels and replies. This module knows no
networks.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from models.data.leaks import deduplication_key
from models.data.user_files import DataError, read_examples
from models.text.language import has_text
from models.text.tokenizer import Turn

SHARED_INTENTS = frozenset(
    ("closinggreeting", "confirmation", "contentonly", "openinggreeting", "outofdomain", "rejection", "thankyou")
)
"""Intents of MultiDoGO that mean the same in every domain. The rest are named `domain/intent`."""

DSTC11_SHARED = frozenset(
    (
        "CheckAccountBalance",
        "CloseAccount",
        "FindBranch",
        "GetBranchHours",
        "OpenAccount",
        "UpdateEmail",
        "UpdatePhoneNumber",
        "UpdateStreetAddress",
    )
)
"""Intents of DSTC11 that several domains share.

Its three domains are three firms' bots. "Update cell number" does not tell which firm is meant.
"""

DSTC11_SAME = {
    "CloseBankAccount": "CloseAccount",
    "OpenBankingAccount": "OpenAccount",
    "ChangeAddress": "UpdateStreetAddress",
}
"""The shared names of intents that a domain names differently."""

CONFIG = Path(__file__).parent.parent / "configs" / "intent.toml"
SLOT = re.compile(r"\{(\w+)(:\w+)?\}")
"""A slot in a reply template that an agent fills in."""

HELD_OUT_DIALOGUES = 50
"""Dialogues held out for validation from a data set without a validation file."""


@dataclass(frozen=True, slots=True)
class LabelSet:
    """A label set of intents as a configuration describes it.

    `kind` is the format of its files: single texts, the texts of DSTC11, MultiDoGO's dialogues, or a user's file of
    examples. That file is `folder`, and every tenth of its rows is held out for validation. `share` is how often an
    epoch goes through the rows. `outside` is the label of out-of-scope rows, or None if the data set has no such label.
    """

    name: str
    folder: str
    kind: Literal["texts", "dstc11", "multidogo", "examples"]
    language: str
    licence: str
    share: float = 1.0
    outside: str | None = None


@dataclass(frozen=True, slots=True)
class ReplySet:
    """A data set of dialogues with both sides. `kind` is the format of its files."""

    name: str
    folder: str
    kind: Literal["star", "crosswoz"]
    language: str
    licence: str
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Utterance:
    """Turns up to the customer's newest, and its intent. None is out of scope: none of the set's intents.

    `name` is the name of the label set. `split` is the domain within it, if it has several.
    """

    turns: tuple[Turn, ...]
    label: str | None
    name: str
    split: str = ""


@dataclass(frozen=True, slots=True)
class ReplyExample:
    """A dialogue, the agent's reply, its template and the templates that the agent chose from.

    Without templates, `template` is None and `options` are empty.
    """

    turns: tuple[Turn, ...]
    reply: str
    template: str | None
    options: tuple[str, ...]


def parse_sets(content: dict[str, Any]) -> tuple[tuple[LabelSet, ...], tuple[ReplySet, ...]]:
    """Return the label sets and reply sets of a configuration."""
    labels, replies = content["label_sets"], content["reply_sets"]
    return tuple(LabelSet(**row) for row in labels), tuple(ReplySet(**row) for row in replies)


def load_shipped_sets() -> tuple[tuple[LabelSet, ...], tuple[ReplySet, ...]]:
    """Return the label sets and reply sets of the shipped bundle."""
    return parse_sets(tomllib.loads(CONFIG.read_text(encoding="utf-8")))


def read_utterances(root: Path, source: LabelSet, split: str) -> list[Utterance]:
    """Return all rows of a split, `train` or `validation`."""
    if source.kind == "examples":
        examples = read_examples(root / source.folder)
        return [
            Utterance(turns, label, source.name)
            for index, (turns, label) in enumerate(examples)
            if (index % 10 == 9) is (split == "validation")
        ]
    rows = _read_rows(root / source.folder / f"{split}.jsonl.gz")
    if source.kind == "multidogo":
        return [utterance for row in rows for utterance in _iterate_sentences(row, source.name)]
    normalize = normalize_dstc11_label if source.kind == "dstc11" else str
    return [
        Utterance((Turn("customer", row["text"]),), None if label == source.outside else normalize(label), source.name)
        for row in rows
        if has_text(row["text"])
        for label in (row["label"],)
    ]


def normalize_dstc11_label(label: str) -> str:
    """Return an intent of DSTC11, `domain/intent`, without its domain if several domains share it."""
    _, _, intent = label.partition("/")
    intent = DSTC11_SAME.get(intent, intent)
    return intent if intent in DSTC11_SHARED else label


def read_reply_examples(root: Path, source: ReplySet, split: str) -> list[ReplyExample]:
    """Return the agent's replies of a split, `train` or `validation`."""
    folder = root / source.folder
    if source.kind == "star":
        templates = json.loads((folder / "response_templates.json").read_text(encoding="utf-8"))
        rows = _read_rows(folder / f"{split}.jsonl.gz")
        return [
            example for row in rows for example in _iterate_replies(row, resolve_templates(templates, row["tasks"]))
        ]
    dialogues = list(_read_rows(folder / "validation.jsonl.gz"))  # the only file there is
    chosen = dialogues[:-HELD_OUT_DIALOGUES] if split == "train" else dialogues[-HELD_OUT_DIALOGUES:]
    return [example for row in chosen for example in _iterate_replies(row, {})]


def read_reply_templates(root: Path, source: ReplySet) -> list[str]:
    """Return the distinct reply templates as texts."""
    content = json.loads((root / source.folder / "response_templates.json").read_text(encoding="utf-8"))
    return list(dict.fromkeys(fill_template(text) for templates in content.values() for text in templates.values()))


def resolve_templates(templates: dict[str, dict[str, str]], tasks: Sequence[str]) -> dict[str, str]:
    """Return the text of each action. The dialogue's tasks override the wording of the rest."""
    ordered = [actions for task, actions in templates.items() if task not in tasks]
    ordered += [templates[task] for task in tasks]
    return {action: fill_template(text) for actions in ordered for action, text in actions.items()}


def fill_template(template: str) -> str:
    """Return a template as a text, with the names of its slots as words."""
    return " ".join(SLOT.sub(lambda slot: slot[1].replace("_", " "), template).split())


def remove_held_out(train: Iterable[Utterance], held_out: Iterable[Utterance]) -> list[Utterance]:
    """Return the training rows whose turns equal those of no validation row, up to case and punctuation."""
    held_out_keys = {_deduplication_key(utterance) for utterance in held_out}
    return [utterance for utterance in train if _deduplication_key(utterance) not in held_out_keys]


def add_context(rng: random.Random, utterance: Utterance, pool: Sequence[Turn]) -> Utterance:
    """Return the utterance after one to three unrelated turns, so that context cannot mislead the network."""
    context = tuple(rng.choice(pool) for _ in range(rng.randint(1, 3)))
    return replace(utterance, turns=(*context, *utterance.turns))


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(f"{path} line {number}: it is not JSON ({error})") from error


def _iterate_sentences(dialogue: dict[str, Any], name: str) -> Iterator[Utterance]:
    """Yield every sentence after all before it, with its first label. Two in a thousand sentences have more."""
    turns: tuple[Turn, ...] = ()
    for sentence in dialogue["turns"]:
        if not has_text(sentence["text"]):
            continue
        turns = (*turns, Turn(sentence["speaker"], sentence["text"]))
        intent = sentence["intents"][0]
        domain = dialogue["domain"]
        yield Utterance(turns, intent if intent in SHARED_INTENTS else f"{domain}/{intent}", name, domain)


def _iterate_replies(dialogue: dict[str, Any], templates: dict[str, str]) -> Iterator[ReplyExample]:
    """Yield each reply of the agent after all turns before it. With templates, only replies that follow a template."""
    turns: tuple[Turn, ...] = ()
    for turn in dialogue["turns"]:
        if not has_text(turn["text"]):
            continue
        template = templates.get(turn.get("action", ""))
        if turn["speaker"] == "agent" and turns and bool(template) is bool(templates):
            options = [templates[option] for option in turn.get("options", ()) if option in templates]
            yield ReplyExample(turns, turn["text"], template, tuple(dict.fromkeys(options)))
        turns = (*turns, Turn(turn["speaker"], turn["text"]))


def _deduplication_key(utterance: Utterance) -> tuple[str, ...]:
    return (utterance.name, *(deduplication_key(turn.text) for turn in utterance.turns))
