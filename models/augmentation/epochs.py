"""Training epochs with augmented rows: swapped entity names, concatenated pairs and opinions in long neutral texts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from models.augmentation.noise import NOISES, apply
from models.data.classification import Dataset, Example

CONNECTORS = {
    "en": ("; ", ", while ", " while ", " as ", ", but ", ". ", ", "),
    "zh": ("；", "，", "，而", "。", "，但"),
}
PLACEHOLDERS = {
    "en": ("A", "B", "Acme", "XYZ Corp", "Stock A", "Company B"),
    "zh": ("甲公司", "乙公司", "某公司", "A公司"),
}


CHINESE_NOISES = frozenset({"traditional", "homophones"})
NOISE_NAMES = {
    "en": [name for name in NOISES if name not in CHINESE_NOISES],
    "zh": [name for name in NOISES if name not in ("capitals", "typo", "two_typos")],
}
TWO_NOISES = 0.3
"""The share of noisy texts with two noises."""

SENTENCE_JOINER = {"en": " ", "zh": ""}
SENTENCE_END = {"en": ".", "zh": "。"}

MAX_CHARACTERS = {"en": 2000, "zh": 560}
"""The longest text that an opinion is hidden in, about 400 tokens."""

AnyRow = TypeVar("AnyRow")


def make_epoch(
    train: Sequence[Example],
    datasets: Sequence[Dataset],
    seed: int,
    epoch: int,
    augment: float,
    hidden: float = 0.0,
) -> list[Example]:
    """Return the rows of an epoch in random order: the share of each data set, plus augmented rows.

    `augment` is the number of pairs per row that names an entity, and these pairs need their entity to be answered.
    `hidden` is the share of opinions, beside all rows, that stand in a long neutral text.
    """
    rng = random.Random(seed + epoch)
    rows: list[Example] = []
    by_dataset: dict[str, list[Example]] = {dataset.name: [] for dataset in datasets}
    for example in train:
        by_dataset[example.dataset].append(example)
    for dataset in datasets:
        examples = by_dataset[dataset.name]
        rows += sample_epoch(examples, dataset.share, seed, epoch)
        targeted = [example for example in examples if example.entity] or extract_leading_entities(
            examples, dataset.named_before
        )
        if targeted:
            pairs = round(len(targeted) * augment * min(1.0, dataset.share))
            rows += rng.sample(targeted, pairs // 2) if not any(example.entity for example in examples) else []
            rows += [concatenate_pair(rng, targeted) for _ in range(pairs)]
    rows += hide_opinions(rng, rows, round(len(rows) * hidden))
    rng.shuffle(rows)
    return rows


def sample_epoch(rows: Sequence[AnyRow], share: float, seed: int, epoch: int) -> list[AnyRow]:
    """Return a data set's rows for one epoch.

    Over the epochs, the numbers of times that two rows are seen differ by at most one.
    """
    order = random.Random(seed).sample(rows, len(rows))
    start, end = (round(len(rows) * share * epochs) for epochs in (epoch, epoch + 1))
    return [order[position % len(rows)] for position in range(start, end)]


def extract_leading_entities(examples: Sequence[Example], separator: str | None) -> list[Example]:
    """Return the rows that begin with a company, `Company：what happened`, with the company as their entity."""
    if separator is None:
        return []
    targeted = []
    for example in examples:
        name, _, rest = example.text.partition(separator)
        if rest and 2 <= len(name) <= 6 and name not in rest:
            targeted.append(replace(example, entity=name))
    return targeted


def concatenate_pair(rng: random.Random, targeted: Sequence[Example]) -> Example:
    """Join two texts of different labels and pick one of their entities as the target.

    Only the target's half then decides the label. Half of the time placeholders replace the names, so that the name
    itself cannot decide either.
    """
    first, second = draw_pair(rng, targeted)
    while first.label == second.label or entity_name(first) in second.text or entity_name(second) in first.text:
        first, second = draw_pair(rng, targeted)
    if rng.random() < 0.5:
        names = rng.sample(PLACEHOLDERS[first.language], 2)
        first, second = rename_entity(first, names[0]), rename_entity(second, names[1])
    text = first.text.rstrip("。.；; ") + rng.choice(CONNECTORS[first.language]) + second.text
    return replace(rng.choice((first, second)), text=text)


def hide_opinions(rng: random.Random, rows: Sequence[Example], count: int) -> list[Example]:
    """Return `count` rows with an opinion, each in a text of neutral sentences of its language.

    The neutral sentences are those of the rows without an entity. The opinion stands anywhere.
    """
    opinions = [row for row in rows if row.label in ("negative", "positive")]
    neutrals: dict[str, list[str]] = {language: [] for language in SENTENCE_END}
    for row in rows:
        if row.label == "neutral" and row.entity is None:
            neutrals[row.language].append(row.text)
    opinions = [row for row in opinions if neutrals[row.language]]
    return [hide_opinion(rng, row, neutrals[row.language]) for row in rng.choices(opinions, k=count if opinions else 0)]


def hide_opinion(rng: random.Random, opinion: Example, neutrals: Sequence[str]) -> Example:
    """Return the row with neutral sentences before and after its text."""
    sentences, room = [opinion.text], rng.uniform(0.15, 1.0) * MAX_CHARACTERS[opinion.language] - len(opinion.text)
    while room > 0:
        sentence = rng.choice(neutrals)
        room -= len(sentence)
        if opinion.entity is None or opinion.entity.casefold() not in sentence.casefold():
            sentences.insert(rng.randrange(len(sentences) + 1), sentence)
    end = SENTENCE_END[opinion.language]
    sentences = [text if text.rstrip()[-1:] in ".!?。！？…" else text.rstrip() + end for text in sentences]
    return replace(opinion, text=SENTENCE_JOINER[opinion.language].join(sentences))


def draw_pair(rng: random.Random, targeted: Sequence[Example]) -> tuple[Example, Example]:
    first, second = rng.sample(targeted, 2)
    return first, second


def entity_name(example: Example) -> str:
    return example.entity or ""


def rename_entity(example: Example, name: str) -> Example:
    """Return the same row about an entity of another name."""
    return replace(example, text=example.text.replace(entity_name(example), name), entity=name)


def add_noise(example: Example, rng: random.Random) -> str:
    """Return the text of an example with one or two noises. Its entity stays as it is."""
    text, names = example.text, NOISE_NAMES[example.language]
    for name in rng.sample(names, 2 if rng.random() < TWO_NOISES else 1):
        text = apply(name, text, rng, example.language, example.entity)
    return text
