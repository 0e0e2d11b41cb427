"""The instance to explain: one output of a model, and the features of its input that can be removed.

The output is a function of the runtime's rows: a calibrated probability, an intent confidence or the score of a reply.
Knows tokens and a runtime.
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
"""The number of tokens that `occlusion` may read for one explanation. Longer texts get features of several words."""


@dataclass(frozen=True, slots=True)
class Feature:
    """Words that are kept or removed together, and the positions of their tokens.

    Words are counted through all segments.
    """

    words: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """One output to explain: the encoded input, its row from the runtime, its scores by label and the target label."""

    runtime: Runtime
    pad: int
    encoding: AlignedEncoding
    features: tuple[Feature, ...]
    row: NDArray[np.float32]
    scores: dict[str, float]
    target: str
    score_function: ScoreFunction

    @property
    def tokens(self) -> Encoding:
        return self.encoding.tokens

    def score(self, masks: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Map masks of the features to keep, (variants, features), to the target's scores, (variants,)."""
        distinct, inverse = np.unique(masks, axis=0, return_inverse=True)
        variants = [remove_tokens(self.tokens, self._removed_positions(mask)) for mask in distinct]
        scores = self.score_function(infer_all(self.runtime, variants, self.pad))
        return np.asarray(scores[inverse, list(self.scores).index(self.target)])

    def score_gradients(
        self, gradients: Gradients, shares: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the target's score where a share of every feature is present, and its gradient for each feature.

        Maps `shares` (points,), above 0 and at most 1, to (points,) and (points, features). Runs the network without
        rounding.
        """
        gates = np.ones((len(shares), self.tokens.length), np.float32)
        for feature in self.features:
            gates[:, list(feature.positions)] = shares[:, None]
        forward, target = gradients.run(self.tokens, gates), list(self.scores).index(self.target)
        by_gate = forward.backward(self.score_function.gradient(forward.rows, target).astype(np.float32))
        by_feature = np.empty((len(shares), len(self.features)))
        for index, feature in enumerate(self.features):
            by_feature[:, index] = by_gate[:, list(feature.positions)].sum(axis=1)
        return self.score_function(forward.rows)[:, target], by_feature

    def with_segments_as_features(self) -> Instance:
        """Return the same instance with each segment as one feature."""
        features, first = [], 0
        for words in self.encoding.segments:
            indices = tuple(range(first, first + len(words.spans)))
            positions = {position for positions in words.token_positions for position in positions}
            features.append(Feature(indices, tuple(sorted(positions))))
            first += len(indices)
        return replace(self, features=tuple(features))

    def _removed_positions(self, mask: NDArray[np.bool_]) -> list[int]:
        return [
            position
            for feature, stays in zip(self.features, mask, strict=True)
            if not stays
            for position in feature.positions
        ]


def make_instance(
    runtime: Runtime,
    pad: int,
    encoding: AlignedEncoding,
    score_function: ScoreFunction,
    labels: Sequence[str],
    target: str | None = None,
) -> Instance:
    """Return the instance of an encoded input. Without `target`, the label with the highest score is explained."""
    rows = infer_all(runtime, [encoding.tokens], pad)
    scores = dict(zip(labels, score_function(rows)[0].tolist(), strict=True))
    label = target if target is not None else max(scores, key=scores.__getitem__)
    features = make_features(encoding.segments, WORK_TOKENS // encoding.tokens.length)
    return Instance(runtime, pad, encoding, features, rows[0], scores, label, score_function)


def make_features(segments: Sequence[WordSpans], limit: int) -> tuple[Feature, ...]:
    """Return at most `limit` features that can be removed.

    Words of the entity and words without a token belong to no feature. Words that share a token form one feature. If
    there are more than `limit`, neighbouring features are joined.
    """
    removable, first = [], 0
    for words in segments:
        removable += _removable_features(words, first)
        first += len(words.spans)
    size = -(-len(removable) // limit)
    return tuple(join_features(removable[start : start + size]) for start in range(0, len(removable), max(size, 1)))


def _removable_features(words: WordSpans, first: int) -> list[Feature]:
    """Return the features of one segment, whose first word has the index `first`."""
    features: list[Feature] = []
    for word, positions in enumerate(words.token_positions, first):
        if features and set(positions) & set(features[-1].positions):
            features[-1] = join_features([features[-1], Feature((word,), positions)])
        elif positions:
            features.append(Feature((word,), positions))
    return [feature for feature in features if not any(words.is_entity(word - first) for word in feature.words)]


def join_features(features: Sequence[Feature]) -> Feature:
    positions = {position for feature in features for position in feature.positions}
    return Feature(tuple(word for feature in features for word in feature.words), tuple(sorted(positions)))


def remove_tokens(tokens: Encoding, positions: Sequence[int]) -> Encoding:
    """Return the encoding without the tokens at `positions`."""
    mask = np.ones(tokens.length, np.bool_)
    mask[list(positions)] = False
    return Encoding(tokens.ids[mask], tokens.token_types[mask], tokens.truncated, tokens.language)
