"""Texts of the capability tests, made from the held-out side of grammars: sampled, with noise, and long.

Knows grammars, noise and data sets. Knows no model.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.augmentation import noise
from models.behaviour.answers import TextCase
from models.data.grammar import GrammarExample
from models.data.training_files import validation_texts
from models.text.language import detect_language, has_text

STRONG_KINDS = {"plain_opinion": "customer_facts", "corporate_events": "corporate_facts"}
"""Kinds with a sentence of clear sentiment, and the kind of the neutral sentences around it."""

ALONE, POSITIONS = "alone", ("start", "middle", "end")
LONG_WORDS = (100, 300)
CHARACTERS_PER_WORD = 1.6
"""Chinese characters that count as a word in the length of a text."""


@dataclass(frozen=True, slots=True)
class LongText:
    """A text of neutral sentences with one strong sentence, whose label is that of the text.

    At the position `alone` it is the strong sentence without any other.
    """

    language: str
    words: int
    position: str
    text: str
    label: str


def sample_rows(rows: Sequence[GrammarExample], count: int, seed: int) -> list[GrammarExample]:
    """Return `count` rows, as evenly from the kinds as there are."""
    rng, by_kind = random.Random(seed), dict[str, list[GrammarExample]]()
    for row in rng.sample(rows, len(rows)):
        by_kind.setdefault(row.kind, []).append(row)
    sampled: list[GrammarExample] = []
    while len(sampled) < count and any(by_kind.values()):
        for members in by_kind.values():
            if members and len(sampled) < count:
                sampled.append(members.pop())
    return sampled


def read_validation_texts(data: Path, rows: int, seed: int) -> dict[str, list[TextCase]]:
    """Return random validation rows of each data set in a folder, at most `rows` of each, by the text's language."""
    by_dataset: dict[str, list[TextCase]] = {}
    for example in validation_texts(data):
        if has_text(example.text):
            by_dataset.setdefault(example.dataset, []).append(TextCase(example.text, example.entity))
    by_language: dict[str, list[TextCase]] = {}
    for name, cases in by_dataset.items():
        for case in random.Random(f"{seed}/{name}").sample(cases, min(rows, len(cases))):
            by_language.setdefault(detect_language(case.text), []).append(case)
    return by_language


def add_noise(name: str, cases: Sequence[TextCase], language: str, seed: int) -> Iterator[tuple[int, TextCase]]:
    """Yield the texts that a noise changes, with their index. The entity stays as it is."""
    for index, case in enumerate(cases):
        rng = random.Random(f"{seed}/{name}/{index}")
        changed = noise.apply(name, case.text, rng, language, case.entity)
        if changed != case.text:
            yield index, TextCase(changed, case.entity)


def long_texts(rows: Sequence[GrammarExample], language: str, count: int, seed: int) -> Iterator[LongText]:
    """Yield `count` strong sentences, or all there are, in each length and position among neutral sentences."""
    neutral: dict[str, list[str]] = {kind: [] for kind in STRONG_KINDS.values()}
    strong: list[GrammarExample] = []
    for row in rows:
        if row.language == language and row.entity is None:
            if row.kind in neutral and row.label == "neutral":
                neutral[row.kind].append(row.text)
            if row.kind in STRONG_KINDS and row.label != "neutral":
                strong.append(row)
    for index, row in enumerate(sample_rows(strong, count, seed)):
        texts = neutral[STRONG_KINDS[row.kind]] or [text for texts in neutral.values() for text in texts]
        for words in LONG_WORDS if texts else ():
            rng = random.Random(f"{seed}/{language}/{index}/{words}")
            yield LongText(language, words, ALONE, row.text, str(row.label))
            before = fill_up(rng, texts, words - count_words(row.text, language), language)
            for position, place in zip(POSITIONS, (0, len(before) // 2, len(before)), strict=True):
                sentences = [end_sentence(text, language) for text in (*before[:place], row.text, *before[place:])]
                text = ("" if language == "zh" else " ").join(sentences)
                yield LongText(language, words, position, text, str(row.label))


def fill_up(rng: random.Random, texts: Sequence[str], words: int, language: str) -> list[str]:
    """Return random texts of together about so many words. Each comes once before any comes again."""
    chosen: list[str] = []
    pool: list[str] = []
    while words > 0:
        pool = pool or rng.sample(texts, len(texts))
        chosen.append(pool.pop())
        words -= count_words(chosen[-1], language)
    return chosen


def count_words(text: str, language: str) -> int:
    return max(1, round(len(text) / CHARACTERS_PER_WORD) if language == "zh" else len(text.split()))


def end_sentence(text: str, language: str) -> str:
    """Return the text with a mark at its end."""
    return text if text[-1:] in ".!?。！？…" else text + ("。" if language == "zh" else ".")
