"""What an encoder of intents and replies is taught: the configuration, the rows of its sets, and every batch in order.

Knows tokens and rows, no network.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from models.data.augmentation import sample_epoch
from models.data.dialogues import (
    LabelSet,
    ReplyExample,
    ReplySet,
    Utterance,
    add_context,
    parse_sets,
    read_exchanges,
    read_utterances,
    remove_held_out,
)
from models.data.user_files import DataError
from models.networks.intent import OUT_OF_SCOPE, IntentRow, ReplyRow
from models.prediction.intent_head_fit import check_labels
from models.prediction.tensor_file import ArtifactError
from models.text.encoding import Encoding
from models.text.tokenizer import Tokenizer
from models.training.trainer import ConfigError, TrainingConfig, batch_by_length

REPLY_SIDE = 2
"""A batch of dialogues has this many times fewer rows than its tokens allow: each brings its reply and others."""

OWN_ROWS = 9000
"""Rows of a team's own examples in an epoch, at least: few are seen often."""

MAX_OTHER_REPLIES = 4
"""Replies that were offered and not given, of one dialogue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentConfig(TrainingConfig):
    """`models/configs/intent.toml` explains each field."""

    unrelated: float
    compiled: bool
    label_sets: tuple[LabelSet, ...]
    reply_sets: tuple[ReplySet, ...]


@dataclass(frozen=True, slots=True)
class IntentDistillation:
    layers: tuple[int, ...]
    labels_weight: float
    states_weight: float
    direction_weight: float


def read_intent_config(path: Path) -> tuple[IntentConfig, IntentDistillation]:
    """Raises ConfigError naming the field when one is missing or unknown."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        own = content.pop("student")
        return intent_config_of(content), IntentDistillation(**{**own, "layers": tuple(own["layers"])})
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the configuration cannot be used: {error}") from error


def intent_config_of(content: dict[str, Any]) -> IntentConfig:
    label_sets, reply_sets = parse_sets(content)
    return IntentConfig(**{**content, "label_sets": label_sets, "reply_sets": reply_sets})


def add_user_examples(config: IntentConfig, name: str, file: Path) -> IntentConfig:
    """The same with a team's own examples as one more label set, of which an epoch sees as much as of banking77."""
    if name in {source.name for source in config.label_sets}:
        raise ConfigError(f"{name} is a label set of the configuration already; give yours another name")
    own = LabelSet(name, str(file.resolve()), "examples", "mixed", "own")
    train, held_out = (read_utterances(Path(), own, part) for part in ("train", "validation"))
    try:
        check_labels([str(one.label) for one in train])
        if len(held_out) < 2:
            raise DataError(f"there are {len(train) + len(held_out)} examples; at least 20 are needed")
    except (DataError, ArtifactError) as error:
        raise ConfigError(f"{file.name}, of which every tenth example is kept to measure: {error}") from None
    own = replace(own, share=max(1.0, OWN_ROWS / len(train)))
    return replace(config, label_sets=(*config.label_sets, own))


@dataclass(frozen=True, slots=True)
class IntentTrainingData:
    """What is trained on, and what is looked at meanwhile."""

    utterances: list[Utterance]
    exchanges: dict[str, list[ReplyExample]]
    held_out: dict[str, list[Utterance]]
    held_out_exchanges: dict[str, list[ReplyExample]]
    labels: dict[str, tuple[str, ...]]


def load_training_data(config: IntentConfig, data: Path) -> IntentTrainingData:
    train, held_out = [], {}
    for source in config.label_sets:
        held_out[source.name] = read_utterances(data, source, "validation")
        train += read_utterances(data, source, "train")
    train = remove_held_out(train, (one for own in held_out.values() for one in own))
    labels = {
        source.name: tuple(sorted({one.label for one in train if one.name == source.name and one.label is not None}))
        for source in config.label_sets
    }
    exchanges, others = (
        {source.name: read_exchanges(data, source, part) for source in config.reply_sets}
        for part in ("train", "validation")
    )
    return IntentTrainingData(train, exchanges, held_out, others, labels)


class BatchPlanner:
    """Every batch of the whole run, in order, from the seed alone."""

    def __init__(self, config: IntentConfig, tokenizer: Tokenizer, material: IntentTrainingData) -> None:
        self._config, self._tokenizer, self._material = config, tokenizer, material
        self._known: dict[str, Encoding] = {}
        every = [turn for own in material.exchanges.values() for one in own[::7] for turn in one.turns[-2:]]
        self._pool = every + [one.turns[-1] for one in material.utterances[::11]]

    def batches(self) -> list[list[Any]]:
        planned: list[list[Any]] = []
        for number in range(ceil(self._config.epochs)):
            part = self._epoch(number)
            planned += part[: round(min(1.0, self._config.epochs - number) * len(part))]
        return planned

    def _epoch(self, number: int) -> list[list[Any]]:
        config, material = self._config, self._material
        chance = random.Random(config.seed + number)
        rows: list[IntentRow] = []
        for source in config.label_sets:
            own = [one for one in material.utterances if one.name == source.name]
            rows += [self._intent_row(chance, one) for one in sample_epoch(own, source.share, config.seed, number)]
        chance.shuffle(rows)
        batches: list[list[Any]] = list(batch_by_length(rows, config, chance))
        for replies in config.reply_sets:
            chosen = sample_epoch(material.exchanges[replies.name], replies.share, config.seed, number)
            batches += self._reply_batches(chance, [self._reply_row(chance, one) for one in chosen])
        chance.shuffle(batches)
        return batches

    def _intent_row(self, chance: random.Random, one: Utterance) -> IntentRow:
        """A single text stands after turns that have nothing to do with it, now and then."""
        if len(one.turns) == 1 and chance.random() < self._config.unrelated:
            one = add_context(chance, one, self._pool)
        tokens, _ = self._tokenizer.encode_dialogue(one.turns[-1].text, one.turns[:-1])
        label = OUT_OF_SCOPE if one.label is None else self._material.labels[one.name].index(one.label)
        return IntentRow(tokens, one.name, label)

    def _reply_row(self, chance: random.Random, one: ReplyExample) -> ReplyRow:
        """The reply as it was said, or as its template."""
        tokens, _ = self._tokenizer.encode_dialogue(one.turns[-1].text, one.turns[:-1])
        others = [text for text in one.options if text != one.template]
        said = one.reply if one.template is None or chance.random() < 0.3 else one.template
        offered = chance.sample(others, min(MAX_OTHER_REPLIES, len(others)))
        return ReplyRow(tokens, self._encode(said), tuple(self._encode(text) for text in offered))

    def _encode(self, text: str) -> Encoding:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text)
        return self._known[text]

    def _reply_batches(self, chance: random.Random, rows: Sequence[ReplyRow]) -> list[list[Any]]:
        batches: list[list[Any]] = []
        for batch in batch_by_length(rows, self._config, chance):
            size = max(2, len(batch) // REPLY_SIDE)
            batches += [batch[start : start + size] for start in range(0, len(batch), size)]
        return batches


def reply_candidates(rows: Sequence[ReplyRow]) -> tuple[list[Encoding], list[int]]:
    """All replies of a batch, each text once, and for each row the place of its own."""
    places: dict[bytes, int] = {}
    texts: list[Encoding] = []

    def place(tokens: Encoding) -> int:
        known = places.setdefault(tokens.ids.tobytes(), len(texts))
        if known == len(texts):
            texts.append(tokens)
        return known

    right = [place(row.reply) for row in rows]
    for row in rows:
        for other in row.others:
            place(other)
    return texts, right
