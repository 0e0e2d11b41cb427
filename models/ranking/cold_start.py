"""What speaks for an item that came after the model was trained: what speaks for the known ones like it.

Such a newcomer has no id-vector and no neighbours, so beside known items it would hardly ever come first. Its nearest
known item by the text stands in for it, with the nearest of that one: a newcomer is told a share of what neighbours say
for these (attributes mapped to what is learned of items, Gantner et al. 2010), something for those that the user has
taken, and a number of its own, such that newcomers together get the share of what is taken next that is theirs. These
three are found on items held back from training (`models.training.cold_start`). Knows numpy alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAREST_ITEMS = 4
"""Nearest known items of a known one that speak with it."""

SHARES = np.asarray([2.0] + [1.0] * NEAREST_ITEMS, np.float32) / (2 + NEAREST_ITEMS)
"""What each counts, itself first. What newcomers are told so is about as good as the mean of their own nearest, and is
found for all of them at once."""

_CHUNK_ROWS = 1_024

Array = NDArray[np.float32]
Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStartWeights:
    """What a newcomer is told: `always`, `said` times what its kin are told, and `taken` for those that were taken."""

    bias: float
    neighbours: float
    taken: float


@dataclass(frozen=True, slots=True)
class ColdStart:
    """`kin` (items, 1 + KIN) are the numbers of each item's kin, itself first."""

    weights: ColdStartWeights
    nearest_items: NDArray[np.int32]

    def scores(self, said: Array, taken: Array) -> Array:
        """(items,): for a newcomer whose nearest is each item, of what is said for these and whether they were taken,
        both (items,)."""
        heard = self.weights.neighbours * said + self.weights.taken * taken
        return (self.weights.bias + heard[self.nearest_items] @ SHARES).astype(np.float32)


def encode_cold_index(nearest: Numbers) -> Numbers:
    """How newcomers are numbered among trained items, by their nearest: below -1, which is nothing at all."""
    return -2 - nearest


def decode_cold_index(numbers: Numbers) -> Numbers:
    return -2 - numbers


def find_nearest_known(texts: Array, known: Array, places: Numbers) -> Numbers:
    """Which of `places` has the row of `known` (places, width), all unit vectors, that is nearest to each text's."""
    parts = [texts[start : start + _CHUNK_ROWS] @ known.T for start in range(0, len(texts), _CHUNK_ROWS)]
    return places[np.concatenate([part.argmax(axis=1) for part in parts])] if parts else places[:0]


def find_nearest_items(texts: Array, known: NDArray[np.bool_]) -> NDArray[np.int32]:
    """`Newcomers.kin` by unit vectors (items, width); one that is not `known` (items,) stands for no others.

    It has its nearest known one first, so that its number is found here, too. Of fewer than 1 + KIN known ones the last
    fills the rest.
    """
    places = np.flatnonzero(known)
    first = np.minimum(np.arange(1 + NEAREST_ITEMS), len(places) - 1)
    kin = np.empty((len(texts), 1 + NEAREST_ITEMS), np.int32)
    for start in range(0, len(texts), _CHUNK_ROWS):
        rows = np.arange(start, min(start + _CHUNK_ROWS, len(texts)))
        near = texts[rows] @ texts[places].T
        near[rows[:, None] == places[None]] = np.inf
        kin[rows] = places[np.argsort(-near, axis=1, kind="stable")[:, first]]
    return kin
