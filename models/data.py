"""Labelled texts: reading data sets, keeping validation out of training, and the target-dependent augmentations.

A data set is a folder with `train.jsonl.gz` and `validation.jsonl.gz`, a row `{"text", "label", "entity"?}` a line.
Knows nothing of networks.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from models.tokens import is_readable

LABEL_NAMES = {"bearish": "negative", "bullish": "positive"}
"""What a data set calls a label, where that differs from the task."""

CONNECTORS = {
    "en": ("; ", ", while ", " while ", " as ", ", but ", ". ", ", "),
    "zh": ("；", "，", "，而", "。", "，但"),
}
PLACEHOLDERS = {
    "en": ("A", "B", "Acme", "XYZ Corp", "Stock A", "Company B"),
    "zh": ("甲公司", "乙公司", "某公司", "A公司"),
}


AnyRow = TypeVar("AnyRow")


@dataclass(frozen=True, slots=True)
class Example:
    """One text; `among` are the labels its annotators could choose from, none for a text without a label."""

    text: str
    label: str | None
    entity: str | None
    dataset: str
    language: str
    among: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """One data set as the configuration names it.

    `share`: how often an epoch goes through its training rows; under 1, the next epoch goes on where this one stopped.
    `smoothing`: label smoothing; `bootstrap`: weight of the model's own answer in the training target (both for
    noisy labels). `absent_share`: for a set without some of the task's labels, the share of its texts that would have
    got one of them, had it been offered. `named_before`: rows like `Company：what happened` also train the
    target-dependent answer.
    """

    name: str
    language: str
    labels: tuple[str, ...]
    licence: str
    share: float = 1.0
    smoothing: float = 0.0
    bootstrap: float = 0.0
    absent_share: float = 0.0
    named_before: str | None = None


def read(root: Path, dataset: Dataset, part: str) -> list[Example]:
    """All rows of one part (`train` or `validation`); raises ValueError naming the row when a label is unknown."""
    examples = []
    path = root / dataset.name / f"{part}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            row = json.loads(line)
            label = LABEL_NAMES.get(row["label"], row["label"])
            if label not in dataset.labels:
                raise ValueError(f"{path} line {number}: label {row['label']!r} is not one of {dataset.labels}")
            examples.append(
                Example(row["text"], label, row.get("entity"), dataset.name, dataset.language, dataset.labels)
            )
    return examples


def read_texts(root: Path, source: Dataset) -> list[Example]:
    """All lines of `NAME.txt.gz`, without labels."""
    with gzip.open(root / f"{source.name}.txt.gz", "rt", encoding="utf-8") as lines:
        texts = [line.strip() for line in lines]
    return [Example(text, None, None, source.name, source.language, ()) for text in texts if is_readable(text)]


def key(text: str) -> str:
    """What two copies of a text have in common: letters and digits only, without case, width or links."""
    plain = re.sub(r"https?://\S+", "", unicodedata.normalize("NFKC", text)).casefold()
    return "".join(character for character in plain if character.isalnum())


def without_leaks(train: Sequence[Example], validation: Sequence[Example]) -> list[Example]:
    """The training rows whose text is in no validation row of any data set."""
    held_out = {key(example.text) for example in validation}
    return [example for example in train if key(example.text) not in held_out]


def epoch(
    train: Sequence[Example], datasets: Sequence[Dataset], seed: int, number: int, augment: float
) -> list[Example]:
    """The rows of epoch `number` in random order: each set's share, plus target-dependent rows made from others.

    `augment` is the number of made rows for each row that names an entity.
    """
    chance = random.Random(seed + number)
    rows: list[Example] = []
    by_set: dict[str, list[Example]] = {dataset.name: [] for dataset in datasets}
    for example in train:
        by_set[example.dataset].append(example)
    for dataset in datasets:
        own = by_set[dataset.name]
        rows += drawn(own, dataset.share, seed, number)
        targeted = [example for example in own if example.entity] or named_before(own, dataset.named_before)
        if targeted:
            rows += chance.sample(targeted, round(len(targeted) * augment / 2)) if not own[0].entity else []
            rows += [compose(chance, targeted) for _ in range(round(len(targeted) * augment))]
    chance.shuffle(rows)
    return rows


def drawn(own: Sequence[AnyRow], share: float, seed: int, number: int) -> list[AnyRow]:
    """One epoch's rows of a set, so that over the epochs every row is seen equally often, give or take one."""
    order = random.Random(seed).sample(own, len(own))
    first, last = (round(len(own) * share * epochs) for epochs in (number, number + 1))
    return [order[place % len(own)] for place in range(first, last)]


def named_before(examples: Sequence[Example], separator: str | None) -> list[Example]:
    """The rows that name their company first, `Company：what happened`, with that company as their entity."""
    if separator is None:
        return []
    found = []
    for example in examples:
        name, _, rest = example.text.partition(separator)
        if rest and 2 <= len(name) <= 6 and name not in rest:
            found.append(replace(example, entity=name))
    return found


def compose(chance: random.Random, targeted: Sequence[Example]) -> Example:
    """Two texts of different labels joined to one; the target is either, so only its own part decides.

    Half of the time the names are swapped for placeholders, so that the name itself cannot decide either.
    """
    first, second = two_of(chance, targeted)
    while first.label == second.label or name_of(first) in second.text or name_of(second) in first.text:
        first, second = two_of(chance, targeted)
    if chance.random() < 0.5:
        names = chance.sample(PLACEHOLDERS[first.language], 2)
        first, second = rename(first, names[0]), rename(second, names[1])
    text = first.text.rstrip("。.；; ") + chance.choice(CONNECTORS[first.language]) + second.text
    return replace(chance.choice((first, second)), text=text)


def two_of(chance: random.Random, targeted: Sequence[Example]) -> tuple[Example, Example]:
    first, second = chance.sample(targeted, 2)
    return first, second


def name_of(example: Example) -> str:
    return example.entity or ""


def rename(example: Example, name: str) -> Example:
    """The same row about an entity of another name."""
    return replace(example, text=example.text.replace(name_of(example), name), entity=name)
