"""Words that drive labels, by kind, and mistakes."""

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
"""In which a word must be, to be said to drive anything."""

MIN_MEAN_WEIGHT = 0.01
"""And that it must have in their mean."""

MAX_MISTAKES = 15
MAX_WORDS, MAX_WORDS_OF_MANY, FEW_LABELS = 20, 8, 6
"""Words that are told of each label, where there are few of these and where there are many."""

WORD_KINDS = ("letters", "Chinese", "number", "punctuation", "link", "other")


@dataclass(frozen=True, slots=True)
class LabelledInstance:
    """A text or dialogue as a question; `label` is the right answer, where that is known, `entity` who it is about."""

    instance: Instance
    label: str | None
    entity: str | None = None


@dataclass(frozen=True, slots=True)
class InfluentialWord:
    """A word, the mean of its weights for the label that was answered, and in how many texts it was."""

    word: str
    weight: float
    texts: int


@dataclass(frozen=True, slots=True)
class ExplainedText:
    """One text as it was answered and explained; `looked` and `rested` are shares by kind of word."""

    row: LabelledInstance
    explanation: Explanation
    rested: dict[str, float]
    looked: dict[str, float] | None

    @property
    def answer(self) -> str:
        return self.explanation.target

    @property
    def wrong(self) -> bool:
        return self.row.label is not None and self.answer != self.row.label


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many texts with one label were given another answer."""

    label: str
    answer: str
    texts: int


def words_of(question: Instance, explanation: Explanation) -> list[tuple[str, WordAttribution]]:
    """Through all passages."""
    return [
        (own.text[word.start : word.end], word)
        for own, passage in zip(question.encoding.segments, explanation.segments, strict=True)
        for word in passage.words
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


def shares(weights: Sequence[tuple[str, float]]) -> dict[str, float]:
    """By kind, of their sum."""
    found = dict.fromkeys(WORD_KINDS, 0.0)
    whole = sum(weight for _, weight in weights) or 1.0
    for kind, weight in weights:
        found[kind] += weight / whole
    return found


def kind_shares(right: Sequence[dict[str, float]], wrong: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """The mean share of each kind where answers are right, and where they are wrong; nothing without both."""
    if not right or not wrong:
        return {}
    return {
        kind: (float(np.mean([one[kind] for one in right])), float(np.mean([one[kind] for one in wrong])))
        for kind in WORD_KINDS
    }


def confusions(wrong: Sequence[ExplainedText]) -> tuple[Confusion, ...]:
    counts = Counter((str(one.row.label), one.answer) for one in wrong)
    return tuple(Confusion(label, answer, texts) for (label, answer), texts in counts.most_common(MAX_MISTAKES))


def influential_words(told: Sequence[ExplainedText]) -> dict[str, tuple[InfluentialWord, ...]]:
    """By label: the words that spoke for it most, in the mean over the texts that were given it."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in told:
        own: dict[str, float] = defaultdict(float)
        for shown, word in words_of(one.row.instance, one.explanation):
            text = shown.casefold()
            if not word.is_entity and kind_of(text) not in ("punctuation", "link", "other"):
                own[text] += word.weight
        for text, weight in own.items():
            found[one.answer][text].append(weight)
    most = MAX_WORDS if len(found) <= FEW_LABELS else MAX_WORDS_OF_MANY
    return {
        label: tuple(
            sorted(
                (
                    InfluentialWord(word, float(np.mean(weights)), len(weights))
                    for word, weights in found[label].items()
                    if len(weights) >= MIN_TEXTS and np.mean(weights) >= MIN_MEAN_WEIGHT
                ),
                key=lambda one: -one.weight,
            )[:most]
        )
        for label in sorted(found)
    }
