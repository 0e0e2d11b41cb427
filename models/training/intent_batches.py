"""The training data of the encoder for intents and replies: the configuration, the rows, and every batch in order.

This module knows tokens and rows, and no network.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from models.augmentation.epochs import sample_epoch
from models.data.dialogues import (
    LabelSet,
    ReplyExample,
    ReplySet,
    Utterance,
    add_context,
    parse_sets,
    read_reply_examples,
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

REPLY_BATCH_DIVISOR = 2
"""The factor by which batches of dialogues are smaller than their tokens allow, to leave room for replies."""

MIN_USER_ROWS = 9000
"""Rows of user examples per epoch. Fewer examples are repeated."""

MAX_NEGATIVE_REPLIES = 4
"""Replies per dialogue that the agent did not choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentConfig(TrainingConfig):
    """`models/configs/intent.toml` explains each field."""

    unrelated: float
    compiled: bool
    label_sets: tuple[LabelSet, ...]
    reply_sets: tuple[ReplySet, ...]


@dataclass(frozen=True, slots=True)
class IntentDistillationConfig:
    """The student and its losses. `models/configs/intent.toml` explains each field."""

    layers: tuple[int, ...]
    labels_weight: float
    states_weight: float
    direction_weight: float


def read_intent_config(path: Path) -> tuple[IntentConfig, IntentDistillationConfig]:
    """Read a configuration file. Raises ConfigError naming a missing or unknown field."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        student = content.pop("student")
        distillation = IntentDistillationConfig(**{**student, "layers": tuple(student["layers"])})
        return parse_intent_config(content), distillation
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the configuration cannot be used: {error}") from error


def parse_intent_config(content: dict[str, Any]) -> IntentConfig:
    label_sets, reply_sets = parse_sets(content)
    return IntentConfig(**{**content, "label_sets": label_sets, "reply_sets": reply_sets})


def add_user_examples(config: IntentConfig, name: str, file: Path) -> IntentConfig:
    """Return the configuration with a user's examples as another label set, with the share of banking77.

    Raises ConfigError if the name is taken or the examples are too few.
    """
    if name in {source.name for source in config.label_sets}:
        raise ConfigError(f"the configuration already has a label set {name}; choose another name for yours")
    source = LabelSet(name, str(file.resolve()), "examples", "mixed", "own")
    train, held_out = (read_utterances(Path(), source, split) for split in ("train", "validation"))
    try:
        check_labels([str(utterance.label) for utterance in train])
        if len(held_out) < 2:
            raise DataError(f"there are {len(train) + len(held_out)} examples; at least 20 are needed")
    except (DataError, ArtifactError) as error:
        raise ConfigError(f"{file.name}, of which every tenth example is held out for validation: {error}") from None
    source = replace(source, share=max(1.0, MIN_USER_ROWS / len(train)))
    return replace(config, label_sets=(*config.label_sets, source))


@dataclass(frozen=True, slots=True)
class IntentTrainingData:
    """Training and validation rows. All but `utterances` are by the name of their label set or reply set."""

    utterances: list[Utterance]
    replies: dict[str, list[ReplyExample]]
    held_out: dict[str, list[Utterance]]
    held_out_replies: dict[str, list[ReplyExample]]
    labels: dict[str, tuple[str, ...]]


def load_training_data(config: IntentConfig, data: Path) -> IntentTrainingData:
    train, held_out = [], {}
    for source in config.label_sets:
        held_out[source.name] = read_utterances(data, source, "validation")
        train += read_utterances(data, source, "train")
    train = remove_held_out(train, (utterance for split in held_out.values() for utterance in split))
    labels = {
        source.name: tuple(sorted({row.label for row in train if row.name == source.name and row.label is not None}))
        for source in config.label_sets
    }
    replies, held_out_replies = (
        {source.name: read_reply_examples(data, source, split) for source in config.reply_sets}
        for split in ("train", "validation")
    )
    return IntentTrainingData(train, replies, held_out, held_out_replies, labels)


class BatchPlanner:
    """Plans every batch of the whole run, in order, from the seed alone."""

    def __init__(self, config: IntentConfig, tokenizer: Tokenizer, data: IntentTrainingData) -> None:
        self._config, self._tokenizer, self._data = config, tokenizer, data
        self._encodings: dict[str, Encoding] = {}
        turns = [turn for rows in data.replies.values() for example in rows[::7] for turn in example.turns[-2:]]
        self._context_pool = turns + [utterance.turns[-1] for utterance in data.utterances[::11]]

    def batches(self) -> list[list[Any]]:
        planned: list[list[Any]] = []
        for epoch in range(ceil(self._config.epochs)):
            batches = self._plan_epoch(epoch)
            planned += batches[: round(min(1.0, self._config.epochs - epoch) * len(batches))]
        return planned

    def _plan_epoch(self, epoch: int) -> list[list[Any]]:
        config, data = self._config, self._data
        rng = random.Random(config.seed + epoch)
        rows: list[IntentRow] = []
        for source in config.label_sets:
            utterances = [utterance for utterance in data.utterances if utterance.name == source.name]
            sample = sample_epoch(utterances, source.share, config.seed, epoch)
            rows += [self._make_intent_row(rng, utterance) for utterance in sample]
        rng.shuffle(rows)
        batches: list[list[Any]] = list(batch_by_length(rows, config, rng))
        for reply_set in config.reply_sets:
            examples = sample_epoch(data.replies[reply_set.name], reply_set.share, config.seed, epoch)
            batches += self._plan_reply_batches(rng, [self._make_reply_row(rng, example) for example in examples])
        rng.shuffle(batches)
        return batches

    def _make_intent_row(self, rng: random.Random, utterance: Utterance) -> IntentRow:
        """Tokenise an utterance. A share of the single texts gets unrelated turns as context."""
        if len(utterance.turns) == 1 and rng.random() < self._config.unrelated:
            utterance = add_context(rng, utterance, self._context_pool)
        tokens, _ = self._tokenizer.encode_dialogue(utterance.turns[-1].text, utterance.turns[:-1])
        labels = self._data.labels[utterance.name]
        label = OUT_OF_SCOPE if utterance.label is None else labels.index(utterance.label)
        return IntentRow(tokens, utterance.name, label)

    def _make_reply_row(self, rng: random.Random, example: ReplyExample) -> ReplyRow:
        """Tokenise a dialogue with the agent's reply, or with its template, and with negative replies."""
        tokens, _ = self._tokenizer.encode_dialogue(example.turns[-1].text, example.turns[:-1])
        alternatives = [text for text in example.options if text != example.template]
        reply = example.reply if example.template is None or rng.random() < 0.3 else example.template
        negatives = rng.sample(alternatives, min(MAX_NEGATIVE_REPLIES, len(alternatives)))
        return ReplyRow(tokens, self._encode(reply), tuple(self._encode(text) for text in negatives))

    def _encode(self, text: str) -> Encoding:
        if text not in self._encodings:
            self._encodings[text] = self._tokenizer.encode(text)
        return self._encodings[text]

    def _plan_reply_batches(self, rng: random.Random, rows: Sequence[ReplyRow]) -> list[list[Any]]:
        batches: list[list[Any]] = []
        for batch in batch_by_length(rows, self._config, rng):
            size = max(2, len(batch) // REPLY_BATCH_DIVISOR)
            batches += [batch[start : start + size] for start in range(0, len(batch), size)]
        return batches


def reply_candidates(rows: Sequence[ReplyRow]) -> tuple[list[Encoding], list[int]]:
    """Return the distinct replies of a batch, and for each row the index of its reply."""
    index_by_ids: dict[bytes, int] = {}
    texts: list[Encoding] = []

    def add(tokens: Encoding) -> int:
        index = index_by_ids.setdefault(tokens.ids.tobytes(), len(texts))
        if index == len(texts):
            texts.append(tokens)
        return index

    correct = [add(row.reply) for row in rows]
    for row in rows:
        for negative in row.negatives:
            add(negative)
    return texts, correct
