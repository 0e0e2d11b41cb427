"""Scores of cold items, the items added after training, from those of similar known items.

A cold item has no ID embedding and no learned neighbours, so it would rarely rank above known items. Its nearest known
item by text stands in for it, together with the items nearest to that one. A cold item gets three terms:

- a share of the neighbour scores of these items (mapping attributes to learned features, Gantner et al. 2010),
- a weight for those that the user has interacted with,
- a bias, fitted so that cold items together get their share of the next interactions.

The three weights are fitted on items held out from training (`models.recommender_training.cold_start`). This module
knows only NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAREST_ITEMS = 4
"""Nearest known items that stand in together with a known item."""

NEAREST_WEIGHTS = np.asarray([2.0] + [1.0] * NEAREST_ITEMS, np.float32) / (2 + NEAREST_ITEMS)
"""Weights of a known item and its nearest items, itself first.

Such scores are about as good as the mean over a cold item's nearest items, and are computed for all cold items at once.
"""

_CHUNK_ROWS = 1_024

Array = NDArray[np.float32]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStartWeights:
    """Weights of a cold item's score.

    `bias` is added always. `neighbours` scales the neighbour scores of its nearest items, and `taken` counts those that
    the user has interacted with.
    """

    bias: float
    neighbours: float
    taken: float


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Cold-start scores of a trained model.

    `nearest_items` (items, 1 + NEAREST_ITEMS) are the indices of each item's nearest known items, itself first.
    """

    weights: ColdStartWeights
    nearest_items: NDArray[np.int32]

    def scores(self, neighbour_scores: Array, taken: Array) -> Array:
        """Return the score (items,) of a cold item for each known item that could be its nearest.

        `neighbour_scores` and `taken` are (items,). The second says how much each item counts as taken by the user.
        """
        terms = self.weights.neighbours * neighbour_scores + self.weights.taken * taken
        return (self.weights.bias + terms[self.nearest_items] @ NEAREST_WEIGHTS).astype(np.float32)


def encode_cold_index(nearest: Indices) -> Indices:
    """Encode a cold item by its nearest known item, as a training index below -1. The index -1 stands for no item."""
    return -2 - nearest


def decode_cold_index(indices: Indices) -> Indices:
    return -2 - indices


def find_nearest_known(texts: Array, known_texts: Array, known_indices: Indices) -> Indices:
    """Return the index of the known item that is nearest to each text.

    `texts` and `known_texts` (items, width) are unit vectors. `known_indices` has the index of each known text.
    """
    products = [texts[start : start + _CHUNK_ROWS] @ known_texts.T for start in range(0, len(texts), _CHUNK_ROWS)]
    return (
        known_indices[np.concatenate([chunk.argmax(axis=1) for chunk in products])] if products else known_indices[:0]
    )


def find_nearest_items(texts: Array, known: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return `ColdStart.nearest_items` by the unit vectors `texts` (items, width).

    Only items that are `known` (items,) are listed. The row of an unknown item starts with its nearest known one, which
    gives its cold index. If fewer than 1 + NEAREST_ITEMS items are known, the last one fills the rest.
    """
    known_indices = np.flatnonzero(known)
    ranks = np.minimum(np.arange(1 + NEAREST_ITEMS), len(known_indices) - 1)
    nearest = np.empty((len(texts), 1 + NEAREST_ITEMS), np.int32)
    for start in range(0, len(texts), _CHUNK_ROWS):
        rows = np.arange(start, min(start + _CHUNK_ROWS, len(texts)))
        products = texts[rows] @ texts[known_indices].T
        products[rows[:, None] == known_indices[None]] = np.inf
        nearest[rows] = known_indices[np.argsort(-products, axis=1, kind="stable")[:, ranks]]
    return nearest
