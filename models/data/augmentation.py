"""Epochs with entity swaps and concatenated pairs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from models.data.classification import Dataset, Example

CONNECTORS = {
    "en": ("; ", ", while ", " while ", " as ", ", but ", ". ", ", "),
    "zh": ("；", "，", "，而", "。", "，但"),
}
PLACEHOLDERS = {
    "en": ("A", "B", "Acme", "XYZ Corp", "Stock A", "Company B"),
    "zh": ("甲公司", "乙公司", "某公司", "A公司"),
}


AnyRow = TypeVar("AnyRow")


def make_epoch(
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
        rows += sample_epoch(own, dataset.share, seed, number)
        targeted = [example for example in own if example.entity] or entities_before(own, dataset.named_before)
        if targeted:
            rows += chance.sample(targeted, round(len(targeted) * augment / 2)) if not own[0].entity else []
            rows += [concatenate_pair(chance, targeted) for _ in range(round(len(targeted) * augment))]
    chance.shuffle(rows)
    return rows


def sample_epoch(own: Sequence[AnyRow], share: float, seed: int, number: int) -> list[AnyRow]:
    """One epoch's rows of a set, so that over the epochs every row is seen equally often, give or take one."""
    order = random.Random(seed).sample(own, len(own))
    first, last = (round(len(own) * share * epochs) for epochs in (number, number + 1))
    return [order[place % len(own)] for place in range(first, last)]


def entities_before(examples: Sequence[Example], separator: str | None) -> list[Example]:
    """The rows that name their company first, `Company：what happened`, with that company as their entity."""
    if separator is None:
        return []
    found = []
    for example in examples:
        name, _, rest = example.text.partition(separator)
        if rest and 2 <= len(name) <= 6 and name not in rest:
            found.append(replace(example, entity=name))
    return found


def concatenate_pair(chance: random.Random, targeted: Sequence[Example]) -> Example:
    """Two texts of different labels joined to one; the target is either, so only its own part decides.

    Half of the time the names are swapped for placeholders, so that the name itself cannot decide either.
    """
    first, second = draw_pair(chance, targeted)
    while first.label == second.label or name_of(first) in second.text or name_of(second) in first.text:
        first, second = draw_pair(chance, targeted)
    if chance.random() < 0.5:
        names = chance.sample(PLACEHOLDERS[first.language], 2)
        first, second = rename(first, names[0]), rename(second, names[1])
    text = first.text.rstrip("。.；; ") + chance.choice(CONNECTORS[first.language]) + second.text
    return replace(chance.choice((first, second)), text=text)


def draw_pair(chance: random.Random, targeted: Sequence[Example]) -> tuple[Example, Example]:
    first, second = chance.sample(targeted, 2)
    return first, second


def name_of(example: Example) -> str:
    return example.entity or ""


def rename(example: Example, name: str) -> Example:
    """The same row about an entity of another name."""
    return replace(example, text=example.text.replace(name_of(example), name), entity=name)
