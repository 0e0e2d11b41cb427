"""What items say of each other: each item's weights for others, in closed form.

B = P T - P diag(m), with P the inverse of XᵀX + ridge · I, T = XᵀY, and m such that no item speaks for itself: the
linear model that best tells Y from X. Each user is a row of both, with a one for each of their items (EASE, Steck 2019,
eq. 8), and each of their events a row of X with what came up to it and of Y with what came after it, fading with
distance (SLIT, Choi et al. 2021); `after` says how much the second kind counts beside the first. What is said of an
item is divided by a power of how many took it (RP3beta, Paudel et al. 2017). Attention over events learns from what
came next; this learns from all pairs of a user's items at once, and knows best what is new to a user. Knows numpy
alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.ranking.cold_start import SHARES, ColdStart, decode_cold_index

Items = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ItemNeighbours:
    """`numbers` (items, kept) are those that an item says most of, for or against, `weights` what it says.

    An item of a history counts by its newest event, `fade` times less for every event after that. Numbers of items are
    -1 for one of which nothing is known, and below that for `newcomers`, where there are any.
    """

    numbers: NDArray[np.int32]
    weights: NDArray[np.float32]
    recency_decay: float
    cold_start: ColdStart | None = None

    def scores(self, own: Items, liked: NDArray[np.bool_], newcomers: bool = True) -> NDArray[np.float32]:
        """What liked events with the items `own` (events,) say of each item, by its number; those below 0 stand last.

        Nothing, 0, of those among `own`, and of number -1. Not `newcomers`: none is asked for.
        """
        own = np.maximum(own, -1)
        rows, after = np.unique(own[liked][::-1], return_index=True)
        rows, after = rows[rows >= 0], after[rows >= 0]
        counted = self.recency_decay**after
        spoken = self.weights[rows] * counted[:, None]
        said = np.bincount(self.numbers[rows].ravel(), spoken.ravel(), len(self.weights) + 1)
        told = np.zeros(0, np.float32)
        if newcomers and self.cold_start is not None:
            taken = np.zeros(len(self.weights), np.float32)
            taken[rows] = counted
            told = self.cold_start.scores(said[:-1].astype(np.float32), taken)[::-1]
        said[own] = 0
        return np.concatenate([said[:-1].astype(np.float32), told, np.zeros(1, np.float32)])

    def contributions(self, own: Items, liked: NDArray[np.bool_], candidates: Items) -> NDArray[np.float32]:
        """The part of each event in what is said of each candidate, (candidates, events); an item's events share.

        Of what a newcomer is told always, no event has a part.
        """
        own = np.maximum(own, -1)
        counted = liked & (own >= 0)
        after: Items = np.cumsum(liked[::-1])[::-1] - liked
        _, item = np.unique(own, return_inverse=True)
        newest = np.zeros(item.max(initial=-1) + 1)
        np.maximum.at(newest, item, counted * self.recency_decay**after)
        shares = counted * (newest / np.maximum(np.bincount(item, counted), 1))[item]
        said = self._said(own, candidates) * shares
        said[(candidates[:, None] == own).any(axis=1)] = 0
        new = np.flatnonzero(candidates < -1)
        if self.cold_start is not None and len(new):
            kin = self.cold_start.nearest_items[decode_cold_index(candidates[new])].astype(np.int64)
            worth = self.cold_start.weights
            heard = worth.neighbours * self._said(own, kin.ravel()) + worth.taken * (own == kin.ravel()[:, None])
            said[new] = np.einsum("k,nke->ne", SHARES, (heard * shares).reshape(*kin.shape, len(own)))
        found: NDArray[np.float32] = said.astype(np.float32)
        return found

    def _said(self, own: Items, candidates: Items) -> NDArray[np.float32]:
        """What each event's item says of each candidate, (candidates, events)."""
        same = self.numbers[own][None] == candidates.astype(np.int32)[:, None, None]
        found: NDArray[np.float32] = (same * self.weights[own]).sum(axis=-1)
        return found
