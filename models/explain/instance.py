"""A question to explain: one answer of a model, and the parts of what it read that can be taken away from it.

What the answer is, is a function of the rows that the runtime gives: a calibrated probability, the confidence of a
head, the score of a reply. Knows tokens and a runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.explain.gradients import Gradients
from models.explain.score_functions import Answer
from models.runtime.offline import rows_of
from models.runtime.protocol import Runtime
from models.text.encoding import Tokens
from models.text.tokenizer import Reading
from models.text.words import Words

WORK_TOKENS = 16_384
"""To read for one explanation by `occlusion`: a long text is weighed in fewer parts, of neighbouring words together."""


@dataclass(frozen=True, slots=True)
class Part:
    """Words that are kept or taken away together, and the positions of their tokens.

    Words are counted through all passages.
    """

    words: tuple[int, ...]
    places: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """What was read, its row of the runtime and scores by label, and the label that is asked about."""

    runtime: Runtime
    pad: int
    reading: Reading
    parts: tuple[Part, ...]
    row: NDArray[np.float32]
    scores: dict[str, float]
    target: str
    scored: Answer

    @property
    def tokens(self) -> Tokens:
        return self.reading.tokens

    def probability(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The target's score for each variant, (variants, parts) to (variants,)."""
        different, which = np.unique(kept, axis=0, return_inverse=True)
        variants = [without(self.tokens, self._hidden(row)) for row in different]
        scores = self.scored(rows_of(self.runtime, variants, self.pad))
        return np.asarray(scores[which, list(self.scores).index(self.target)])

    def slopes(
        self, gradients: Gradients, shares: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The target's score where all parts are there by a share, and its gradient by each part.

        `shares` (points,) above 0 and at most 1 to (points,) and (points, parts). By the network without rounding.
        """
        gates = np.ones((len(shares), self.tokens.length), np.float32)
        for part in self.parts:
            gates[:, list(part.places)] = shares[:, None]
        passed, target = gradients.run(self.tokens, gates), list(self.scores).index(self.target)
        by_gates = passed.back(self.scored.slope(passed.rows, target).astype(np.float32))
        by_part = np.empty((len(shares), len(self.parts)))
        for number, part in enumerate(self.parts):
            by_part[:, number] = by_gates[:, list(part.places)].sum(axis=1)
        return self.scored(passed.rows)[:, target], by_part

    def by_passage(self) -> Question:
        """The same, with each passage as one part."""
        found, first = [], 0
        for words in self.reading.passages:
            numbers = tuple(range(first, first + len(words.spans)))
            found.append(Part(numbers, tuple(sorted({place for places in words.places for place in places}))))
            first += len(numbers)
        return replace(self, parts=tuple(found))

    def _hidden(self, kept: NDArray[np.bool_]) -> list[int]:
        return [place for part, stays in zip(self.parts, kept, strict=True) if not stays for place in part.places]


def ask(
    runtime: Runtime, pad: int, reading: Reading, scored: Answer, labels: Sequence[str], target: str | None = None
) -> Question:
    """The target is the label with the highest score unless one is given."""
    rows = rows_of(runtime, [reading.tokens], pad)
    scores = dict(zip(labels, scored(rows)[0].tolist(), strict=True))
    asked = target if target is not None else max(scores, key=scores.__getitem__)
    parts = parts_of(reading.passages, WORK_TOKENS // reading.tokens.length)
    return Question(runtime, pad, reading, parts, rows[0], scores, asked, scored)


def parts_of(passages: Sequence[Words], limit: int) -> tuple[Part, ...]:
    """The words that can be taken away: not those of the entity, nor what the tokenizer keeps nothing of.

    Words that share a token go together, and so do neighbours where there would be more than `limit` parts.
    """
    free, first = [], 0
    for words in passages:
        free += _free(words, first)
        first += len(words.spans)
    size = -(-len(free) // limit)
    return tuple(joined(free[start : start + size]) for start in range(0, len(free), max(size, 1)))


def _free(words: Words, first: int) -> list[Part]:
    """Of one passage, whose first word has the number `first`."""
    parts: list[Part] = []
    for word, places in enumerate(words.places, first):
        if parts and set(places) & set(parts[-1].places):
            parts[-1] = joined([parts[-1], Part((word,), places)])
        elif places:
            parts.append(Part((word,), places))
    return [part for part in parts if not any(words.named(word - first) for word in part.words)]


def joined(parts: Sequence[Part]) -> Part:
    places = {place for part in parts for place in part.places}
    return Part(tuple(word for part in parts for word in part.words), tuple(sorted(places)))


def without(tokens: Tokens, places: Sequence[int]) -> Tokens:
    """The tokens that are left when those at `places` are taken out."""
    left = np.ones(tokens.length, np.bool_)
    left[list(places)] = False
    return Tokens(tokens.ids[left], tokens.types[left], tokens.truncated, tokens.language)
