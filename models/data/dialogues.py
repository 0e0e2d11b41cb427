"""Dialogues to train and measure on: what a customer wants at a turn, and what an agent answered.

Reads the published sets as they are filed and makes turns, labels and replies of them. Knows nothing of networks.
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

from models.data.classification import deduplication_key
from models.data.user_files import DataError, read_examples
from models.text.language import has_text
from models.text.tokenizer import Turn

SHARED_INTENTS = frozenset(
    ("closinggreeting", "confirmation", "contentonly", "openinggreeting", "outofdomain", "rejection", "thankyou")
)
"""Of MultiDoGO: they mean the same in every domain; all others are named `domain/intent`."""

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
"""Of DSTC11, whose three domains are three firms' bots: nobody can tell by "update cell number" which is meant."""

DSTC11_SAME = {
    "CloseBankAccount": "CloseAccount",
    "OpenBankingAccount": "OpenAccount",
    "ChangeAddress": "UpdateStreetAddress",
}
"""What one domain calls otherwise."""

CONFIG = Path(__file__).parent.parent / "configs" / "intent.toml"
PLACE = re.compile(r"\{(\w+)(:\w+)?\}")
"""A place in a reply template that an agent fills in."""

HELD_OUT_DIALOGUES = 50
"""Of a set without a validation file, kept for validation."""


@dataclass(frozen=True, slots=True)
class LabelSet:
    """One set of intents as the configuration names it.

    `kind` is how its files are read: single texts, those of DSTC11, MultiDoGO's dialogues, or a team's own file of
    examples, which `folder` then is and of which every tenth row is kept for validation. `share`: how often an epoch
    goes through its rows. `outside`: the label of what is none of the others, where the set has one.
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
    """Dialogues with both sides; `kind` is how their files are read."""

    name: str
    folder: str
    kind: Literal["star", "crosswoz"]
    language: str
    licence: str
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Utterance:
    """The newest turn of `turns`, a customer's, and what was wanted; None is outside all intents of the set.

    `name` is that of the set, `part` of the domain in it, where it has several.
    """

    turns: tuple[Turn, ...]
    label: str | None
    name: str
    split: str = ""


@dataclass(frozen=True, slots=True)
class ReplyExample:
    """What was said, the agent's reply, and the templates it could be chosen from with the one that was.

    Of a set without templates `template` is None and `options` are empty.
    """

    turns: tuple[Turn, ...]
    reply: str
    template: str | None
    options: tuple[str, ...]


def parse_sets(content: dict[str, Any]) -> tuple[tuple[LabelSet, ...], tuple[ReplySet, ...]]:
    """The sets that a configuration names."""
    labels, replies = content["label_sets"], content["reply_sets"]
    return tuple(LabelSet(**row) for row in labels), tuple(ReplySet(**row) for row in replies)


def shipped_sets() -> tuple[tuple[LabelSet, ...], tuple[ReplySet, ...]]:
    """Those that the shipped bundle was made of."""
    return parse_sets(tomllib.loads(CONFIG.read_text(encoding="utf-8")))


def read_utterances(root: Path, source: LabelSet, part: str) -> list[Utterance]:
    """All rows of one part, `train` or `validation`."""
    if source.kind == "examples":
        every = read_examples(root / source.folder)
        return [
            Utterance(turns, label, source.name)
            for number, (turns, label) in enumerate(every)
            if (number % 10 == 9) is (part == "validation")
        ]
    rows = _rows(root / source.folder / f"{part}.jsonl.gz")
    if source.kind == "multidogo":
        return [one for row in rows for one in _sentences(row, source.name)]
    named = shared_label if source.kind == "dstc11" else str
    return [
        Utterance((Turn("customer", row["text"]),), None if label == source.outside else named(label), source.name)
        for row in rows
        if has_text(row["text"])
        for label in (row["label"],)
    ]


def shared_label(label: str) -> str:
    """An intent of DSTC11, `domain/intent`, without its domain where it means the same in others."""
    _, _, intent = label.partition("/")
    intent = DSTC11_SAME.get(intent, intent)
    return intent if intent in DSTC11_SHARED else label


def read_exchanges(root: Path, source: ReplySet, part: str) -> list[ReplyExample]:
    folder = root / source.folder
    if source.kind == "star":
        templates = json.loads((folder / "response_templates.json").read_text(encoding="utf-8"))
        rows = _rows(folder / f"{part}.jsonl.gz")
        return [one for row in rows for one in _answers(row, spoken_templates(templates, row["tasks"]))]
    every = list(_rows(folder / "validation.jsonl.gz"))  # the only file there is
    chosen = every[:-HELD_OUT_DIALOGUES] if part == "train" else every[-HELD_OUT_DIALOGUES:]
    return [one for row in chosen for one in _answers(row, {})]


def all_templates(root: Path, source: ReplySet) -> list[str]:
    """Every reply template once, as text."""
    content = json.loads((root / source.folder / "response_templates.json").read_text(encoding="utf-8"))
    return list(dict.fromkeys(fill_template(text) for own in content.values() for text in own.values()))


def spoken_templates(templates: dict[str, dict[str, str]], tasks: Sequence[str]) -> dict[str, str]:
    """Actions to texts; where tasks word an action differently, as the dialogue's own do."""
    every = [own for task, own in templates.items() if task not in tasks] + [templates[task] for task in tasks]
    return {action: fill_template(text) for own in every for action, text in own.items()}


def fill_template(template: str) -> str:
    """A template as a text: its places become words."""
    return " ".join(PLACE.sub(lambda found: found[1].replace("_", " "), template).split())


def remove_held_out(train: Iterable[Utterance], held_out: Iterable[Utterance]) -> list[Utterance]:
    """The training rows of which no validation row has the same words in its newest turn, and in those before it."""
    known = {_key(one) for one in held_out}
    return [one for one in train if _key(one) not in known]


def add_context(chance: random.Random, row: Utterance, pool: Sequence[Turn]) -> Utterance:
    """The row after one to three turns that have nothing to do with it, so that what was said before cannot mislead."""
    before = tuple(chance.choice(pool) for _ in range(chance.randint(1, 3)))
    return replace(row, turns=(*before, *row.turns))


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(f"{path} line {number}: it is not JSON ({error})") from error


def _sentences(dialogue: dict[str, Any], name: str) -> Iterator[Utterance]:
    """Every sentence with all before it. Of its labels the first: two in a thousand sentences have more."""
    turns: tuple[Turn, ...] = ()
    for sentence in dialogue["turns"]:
        if not has_text(sentence["text"]):
            continue
        turns = (*turns, Turn(sentence["speaker"], sentence["text"]))
        intent = sentence["intents"][0]
        domain = dialogue["domain"]
        yield Utterance(turns, intent if intent in SHARED_INTENTS else f"{domain}/{intent}", name, domain)


def _answers(dialogue: dict[str, Any], templates: dict[str, str]) -> Iterator[ReplyExample]:
    """Each reply of the agent after all before it; with templates, those that follow one."""
    turns: tuple[Turn, ...] = ()
    for turn in dialogue["turns"]:
        if not has_text(turn["text"]):
            continue
        template = templates.get(turn.get("action", ""))
        if turn["speaker"] == "agent" and turns and bool(template) is bool(templates):
            options = [templates[option] for option in turn.get("options", ()) if option in templates]
            yield ReplyExample(turns, turn["text"], template, tuple(dict.fromkeys(options)))
        turns = (*turns, Turn(turn["speaker"], turn["text"]))


def _key(utterance: Utterance) -> tuple[str, ...]:
    return (utterance.name, *(deduplication_key(turn.text) for turn in utterance.turns))
