"""Words that drive labels, kinds of words, and mistakes."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.explain.explainer import Explanation, WordAttribution
from models.explain.instance import Instance
from models.text.words import HAN, LINK_WORD

MIN_TEXTS = 3
"""The number of texts that an influential word occurs in at least."""

MIN_MEAN_WEIGHT = 0.01
"""The mean weight that an influential word has at least in these texts."""

MAX_MISTAKES = 15
MAX_WORDS, MAX_WORDS_OF_MANY, FEW_LABELS = 20, 8, 6
"""The number of words per label, with few labels and with many, and the number of labels that are still few."""

WORD_KINDS = ("letters", "Chinese", "number", "punctuation", "link", "other")


@dataclass(frozen=True, slots=True)
class LabelledInstance:
    """A text or dialogue to explain, its true label if it is known, and the entity that it is about, if any."""

    instance: Instance
    label: str | None
    entity: str | None = None


@dataclass(frozen=True, slots=True)
class InfluentialWord:
    """A word, the mean of its weights for the answered label, and the number of texts that it occurs in."""

    word: str
    weight: float
    texts: int


@dataclass(frozen=True, slots=True)
class ExplainedText:
    """A text with its explanation, and the shares of attribution and of attention by kind of word."""

    row: LabelledInstance
    explanation: Explanation
    attribution_by_kind: dict[str, float]
    attention_by_kind: dict[str, float] | None

    @property
    def answer(self) -> str:
        return self.explanation.target

    @property
    def wrong(self) -> bool:
        return self.row.label is not None and self.answer != self.row.label


@dataclass(frozen=True, slots=True)
class Confusion:
    """The number of texts with one label that were answered with another."""

    label: str
    answer: str
    texts: int


def words_of(instance: Instance, explanation: Explanation) -> list[tuple[str, WordAttribution]]:
    """Return the words of all segments with their attributions."""
    return [
        (words.text[word.start : word.end], word)
        for words, segment in zip(instance.encoding.segments, explanation.segments, strict=True)
        for word in segment.words
    ]


def kind_of(word: str) -> str:
    if LINK_WORD.match(word):
        return "link"
    if HAN.match(word):
        return "Chinese"
    if any(c.isdigit() for c in word):
        return "number"
    if word[0].isalpha():
        return "letters"
    category = unicodedata.category(word[0])
    return "punctuation" if category[0] in "PS" and category != "So" else "other"  # "So": pictures


def shares_by_kind(weights: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return the share of each kind in the sum of the weights."""
    shares = dict.fromkeys(WORD_KINDS, 0.0)
    total = sum(weight for _, weight in weights) or 1.0
    for kind, weight in weights:
        shares[kind] += weight / total
    return shares


def mean_shares_by_kind(
    right: Sequence[dict[str, float]], wrong: Sequence[dict[str, float]]
) -> dict[str, tuple[float, float]]:
    """Return the mean share of each kind in right and in wrong answers. The result is empty if either is missing."""
    if not right or not wrong:
        return {}
    return {
        kind: (float(np.mean([shares[kind] for shares in right])), float(np.mean([shares[kind] for shares in wrong])))
        for kind in WORD_KINDS
    }


def count_confusions(wrong: Sequence[ExplainedText]) -> tuple[Confusion, ...]:
    """Return the MAX_MISTAKES most frequent confusions."""
    counts = Counter((str(text.row.label), text.answer) for text in wrong)
    return tuple(Confusion(label, answer, texts) for (label, answer), texts in counts.most_common(MAX_MISTAKES))


def find_influential_words(explained: Sequence[ExplainedText]) -> dict[str, tuple[InfluentialWord, ...]]:
    """Return the words with the largest mean weight for each answered label."""
    weights_by_label: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for text in explained:
        weight_by_word: dict[str, float] = defaultdict(float)
        for surface, attribution in words_of(text.row.instance, text.explanation):
            word = surface.casefold()
            if not attribution.is_entity and kind_of(word) not in ("punctuation", "link", "other"):
                weight_by_word[word] += attribution.weight
        for word, weight in weight_by_word.items():
            weights_by_label[text.answer][word].append(weight)
    limit = MAX_WORDS if len(weights_by_label) <= FEW_LABELS else MAX_WORDS_OF_MANY
    return {
        label: tuple(
            sorted(
                (
                    InfluentialWord(word, float(np.mean(weights)), len(weights))
                    for word, weights in weights_by_label[label].items()
                    if len(weights) >= MIN_TEXTS and np.mean(weights) >= MIN_MEAN_WEIGHT
                ),
                key=lambda influential: -influential.weight,
            )[:limit]
        )
        for label in sorted(weights_by_label)
    }
