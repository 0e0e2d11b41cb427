"""Item neighbours: each item's weights for other items, learned in closed form.

B = P T - P diag(m), with P the inverse of XᵀX + ridge · I and T = XᵀY, where m makes the diagonal of B zero. It is the
linear model that best predicts Y from X. Rows of X and Y come from two sources:

- Each user is a row of both, with a one for each of their items (EASE, Steck 2019, eq. 8).
- Each event is a row of X with the items up to it and of Y with the items after it, fading with distance (SLIT, Choi
  et al. 2021). `after` is the weight of these rows.

Weights for an item are divided by a power of its popularity (RP3beta, Paudel et al. 2017). Attention over events learns
from the next items. This model learns from all pairs of a user's items at once, and is the best source for items that
are new to a user. This module knows only NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.ranking.cold_start import NEAREST_WEIGHTS, ColdStart, decode_cold_index

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ItemNeighbours:
    """The strongest neighbours of each item.

    `indices` (items, neighbours) are the items with the largest weights in magnitude, and `weights` are these weights.
    An item of a history counts by its newest event, times `recency_decay` for every later event. The index of an
    unknown item is -1, and that of a cold item is lower, if there is a `cold_start`.
    """

    indices: NDArray[np.int32]
    weights: NDArray[np.float32]
    recency_decay: float
    cold_start: ColdStart | None = None

    def scores(self, history_items: Indices, liked: NDArray[np.bool_], cold_items: bool = True) -> NDArray[np.float32]:
        """Return the neighbour score of every item from the liked events with `history_items` (events,).

        The result is indexed by training index, so negative indices read from its end. Items of the history and
        index -1 score 0. Without `cold_items` the scores of cold items are left out.
        """
        history_items = np.maximum(history_items, -1)
        rows, later = np.unique(history_items[liked][::-1], return_index=True)
        rows, later = rows[rows >= 0], later[rows >= 0]
        decay = self.recency_decay**later
        weighted = self.weights[rows] * decay[:, None]
        scores = np.bincount(self.indices[rows].ravel(), weighted.ravel(), len(self.weights) + 1)
        cold_scores = np.zeros(0, np.float32)
        if cold_items and self.cold_start is not None:
            taken = np.zeros(len(self.weights), np.float32)
            taken[rows] = decay
            cold_scores = self.cold_start.scores(scores[:-1].astype(np.float32), taken)[::-1]
        scores[history_items] = 0
        return np.concatenate([scores[:-1].astype(np.float32), cold_scores, np.zeros(1, np.float32)])

    def contributions(
        self, history_items: Indices, liked: NDArray[np.bool_], candidates: Indices
    ) -> NDArray[np.float32]:
        """Return the contribution (candidates, events) of each event to the neighbour score of each candidate.

        Events of the same item share its contribution equally. The bias of cold items belongs to no event.
        """
        history_items = np.maximum(history_items, -1)
        counted = liked & (history_items >= 0)
        later: Indices = np.cumsum(liked[::-1])[::-1] - liked
        _, item = np.unique(history_items, return_inverse=True)
        newest = np.zeros(item.max(initial=-1) + 1)
        np.maximum.at(newest, item, counted * self.recency_decay**later)
        shares = counted * (newest / np.maximum(np.bincount(item, counted), 1))[item]
        contributions = self._pair_weights(history_items, candidates) * shares
        contributions[(candidates[:, None] == history_items).any(axis=1)] = 0
        cold = np.flatnonzero(candidates < -1)
        if self.cold_start is not None and len(cold):
            nearest = self.cold_start.nearest_items[decode_cold_index(candidates[cold])].astype(np.int64)
            weights = self.cold_start.weights
            pairs = self._pair_weights(history_items, nearest.ravel())
            terms = weights.neighbours * pairs + weights.taken * (history_items == nearest.ravel()[:, None])
            terms = (terms * shares).reshape(*nearest.shape, len(history_items))
            contributions[cold] = np.einsum("k,nke->ne", NEAREST_WEIGHTS, terms)
        result: NDArray[np.float32] = contributions.astype(np.float32)
        return result

    def _pair_weights(self, history_items: Indices, candidates: Indices) -> NDArray[np.float32]:
        """Return the weight (candidates, events) of each event's item for each candidate."""
        same = self.indices[history_items][None] == candidates.astype(np.int32)[:, None, None]
        weights: NDArray[np.float32] = (same * self.weights[history_items]).sum(axis=-1)
        return weights
