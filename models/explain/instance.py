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
from models.explain.score_functions import ScoreFunction
from models.runtime.offline import infer_all
from models.runtime.protocol import Runtime
from models.text.encoding import Encoding
from models.text.tokenizer import AlignedEncoding
from models.text.words import WordSpans

WORK_TOKENS = 16_384
"""To read for one explanation by `occlusion`: a long text is weighed in fewer parts, of neighbouring words together."""


@dataclass(frozen=True, slots=True)
class Feature:
    """Words that are kept or taken away together, and the positions of their tokens.

    Words are counted through all passages.
    """

    words: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """What was read, its row of the runtime and scores by label, and the label that is asked about."""

    runtime: Runtime
    pad: int
    encoding: AlignedEncoding
    features: tuple[Feature, ...]
    row: NDArray[np.float32]
    scores: dict[str, float]
    target: str
    scored: ScoreFunction

    @property
    def tokens(self) -> Encoding:
        return self.encoding.tokens

    def score(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The target's score for each variant, (variants, parts) to (variants,)."""
        different, which = np.unique(kept, axis=0, return_inverse=True)
        variants = [remove_tokens(self.tokens, self._hidden(row)) for row in different]
        scores = self.scored(infer_all(self.runtime, variants, self.pad))
        return np.asarray(scores[which, list(self.scores).index(self.target)])

    def score_gradients(
        self, gradients: Gradients, shares: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The target's score where all parts are there by a share, and its gradient by each part.

        `shares` (points,) above 0 and at most 1 to (points,) and (points, parts). By the network without rounding.
        """
        gates = np.ones((len(shares), self.tokens.length), np.float32)
        for part in self.features:
            gates[:, list(part.positions)] = shares[:, None]
        passed, target = gradients.run(self.tokens, gates), list(self.scores).index(self.target)
        by_gates = passed.backward(self.scored.gradient(passed.rows, target).astype(np.float32))
        by_part = np.empty((len(shares), len(self.features)))
        for number, part in enumerate(self.features):
            by_part[:, number] = by_gates[:, list(part.positions)].sum(axis=1)
        return self.scored(passed.rows)[:, target], by_part

    def with_segments_as_features(self) -> Instance:
        """The same, with each passage as one part."""
        found, first = [], 0
        for words in self.encoding.segments:
            numbers = tuple(range(first, first + len(words.spans)))
            found.append(
                Feature(numbers, tuple(sorted({place for places in words.token_positions for place in places})))
            )
            first += len(numbers)
        return replace(self, features=tuple(found))

    def _hidden(self, kept: NDArray[np.bool_]) -> list[int]:
        return [place for part, stays in zip(self.features, kept, strict=True) if not stays for place in part.positions]


def make_instance(
    runtime: Runtime,
    pad: int,
    reading: AlignedEncoding,
    scored: ScoreFunction,
    labels: Sequence[str],
    target: str | None = None,
) -> Instance:
    """The target is the label with the highest score unless one is given."""
    rows = infer_all(runtime, [reading.tokens], pad)
    scores = dict(zip(labels, scored(rows)[0].tolist(), strict=True))
    asked = target if target is not None else max(scores, key=scores.__getitem__)
    parts = features_of(reading.segments, WORK_TOKENS // reading.tokens.length)
    return Instance(runtime, pad, reading, parts, rows[0], scores, asked, scored)


def features_of(passages: Sequence[WordSpans], limit: int) -> tuple[Feature, ...]:
    """The words that can be taken away: not those of the entity, nor what the tokenizer keeps nothing of.

    Words that share a token go together, and so do neighbours where there would be more than `limit` parts.
    """
    free, first = [], 0
    for words in passages:
        free += _free(words, first)
        first += len(words.spans)
    size = -(-len(free) // limit)
    return tuple(join_features(free[start : start + size]) for start in range(0, len(free), max(size, 1)))


def _free(words: WordSpans, first: int) -> list[Feature]:
    """Of one passage, whose first word has the number `first`."""
    parts: list[Feature] = []
    for word, places in enumerate(words.token_positions, first):
        if parts and set(places) & set(parts[-1].positions):
            parts[-1] = join_features([parts[-1], Feature((word,), places)])
        elif places:
            parts.append(Feature((word,), places))
    return [part for part in parts if not any(words.is_entity(word - first) for word in part.words)]


def join_features(parts: Sequence[Feature]) -> Feature:
    places = {place for part in parts for place in part.positions}
    return Feature(tuple(word for part in parts for word in part.words), tuple(sorted(places)))


def remove_tokens(tokens: Encoding, places: Sequence[int]) -> Encoding:
    """The tokens that are left when those at `places` are taken out."""
    left = np.ones(tokens.length, np.bool_)
    left[list(places)] = False
    return Encoding(tokens.ids[left], tokens.token_types[left], tokens.truncated, tokens.language)
