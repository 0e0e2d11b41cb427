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

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf

import numpy as np
from numpy.typing import NDArray

from models.histories import Items, Trail
from models.newcomers import SHARES, Newcomers, nearest_of


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourSchedule:
    """`models/configs/recommend.toml` explains each field."""

    weight: float
    ridge: float
    kept: int
    after: float = 0.0
    past: float = inf
    ahead: float = inf
    asked: float = inf
    popular: float = 0.0

    @property
    def fade(self) -> float:
        """What an item of a history counts less for every event that came after it, as a factor."""
        return exp(-1 / self.asked)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """`numbers` (items, kept) are those that an item says most of, for or against, `weights` what it says.

    An item of a history counts by its newest event, `fade` times less for every event after that. Numbers of items are
    -1 for one of which nothing is known, and below that for `newcomers`, where there are any.
    """

    numbers: NDArray[np.int32]
    weights: NDArray[np.float32]
    fade: float
    newcomers: Newcomers | None = None

    def say(self, own: Items, liked: NDArray[np.bool_], newcomers: bool = True) -> NDArray[np.float32]:
        """What liked events with the items `own` (events,) say of each item, by its number; those below 0 stand last.

        Nothing, 0, of those among `own`, and of number -1. Not `newcomers`: none is asked for.
        """
        own = np.maximum(own, -1)
        rows, after = np.unique(own[liked][::-1], return_index=True)
        rows, after = rows[rows >= 0], after[rows >= 0]
        counted = self.fade**after
        spoken = self.weights[rows] * counted[:, None]
        said = np.bincount(self.numbers[rows].ravel(), spoken.ravel(), len(self.weights) + 1)
        told = np.zeros(0, np.float32)
        if newcomers and self.newcomers is not None:
            taken = np.zeros(len(self.weights), np.float32)
            taken[rows] = counted
            told = self.newcomers.told(said[:-1].astype(np.float32), taken)[::-1]
        said[own] = 0
        return np.concatenate([said[:-1].astype(np.float32), told, np.zeros(1, np.float32)])

    def parts(self, own: Items, liked: NDArray[np.bool_], candidates: Items) -> NDArray[np.float32]:
        """The part of each event in what is said of each candidate, (candidates, events); an item's events share.

        Of what a newcomer is told always, no event has a part.
        """
        own = np.maximum(own, -1)
        counted = liked & (own >= 0)
        after: Items = np.cumsum(liked[::-1])[::-1] - liked
        _, item = np.unique(own, return_inverse=True)
        newest = np.zeros(item.max(initial=-1) + 1)
        np.maximum.at(newest, item, counted * self.fade**after)
        shares = counted * (newest / np.maximum(np.bincount(item, counted), 1))[item]
        said = self._said(own, candidates) * shares
        said[(candidates[:, None] == own).any(axis=1)] = 0
        new = np.flatnonzero(candidates < -1)
        if self.newcomers is not None and len(new):
            kin = self.newcomers.kin[nearest_of(candidates[new])].astype(np.int64)
            worth = self.newcomers.worth
            heard = worth.said * self._said(own, kin.ravel()) + worth.taken * (own == kin.ravel()[:, None])
            said[new] = np.einsum("k,nke->ne", SHARES, (heard * shares).reshape(*kin.shape, len(own)))
        found: NDArray[np.float32] = said.astype(np.float32)
        return found

    def _said(self, own: Items, candidates: Items) -> NDArray[np.float32]:
        """What each event's item says of each candidate, (candidates, events)."""
        same = self.numbers[own][None] == candidates.astype(np.int32)[:, None, None]
        found: NDArray[np.float32] = (same * self.weights[own]).sum(axis=-1)
        return found


def neighbours_of(trails: Collection[Trail], items: int, schedule: NeighbourSchedule) -> Neighbours:
    """The largest weights of each item in amount, times the schedule's weight; what is popular is said less."""
    users = np.bincount(np.concatenate([np.unique(trail.items) for trail in trails]), minlength=items)
    weights = item_weights(trails, items, schedule) * schedule.weight / np.maximum(users, 1) ** schedule.popular
    kept = np.argsort(-np.abs(weights), axis=1)[:, : schedule.kept]
    return Neighbours(
        kept.astype(np.int32), np.take_along_axis(weights, kept, axis=1).astype(np.float32), schedule.fade
    )


def item_weights(trails: Collection[Trail], items: int, schedule: NeighbourSchedule) -> NDArray[np.float64]:
    """B (items, items)."""
    gram, told = moments(trails, items, schedule)
    inverse = np.linalg.inv(gram)
    weights: NDArray[np.float64] = inverse @ told
    weights -= inverse * (np.diag(weights) / np.diag(inverse))
    np.fill_diagonal(weights, 0)
    return weights


def moments(
    trails: Collection[Trail], items: int, schedule: NeighbourSchedule
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """XᵀX + ridge · I and XᵀY, both (items, items)."""
    gram, told = schedule.ridge * np.eye(items), np.zeros((items, items))
    for trail in trails:
        own, places = np.unique(trail.items, return_inverse=True)
        block = np.ix_(own, own)
        gram[block] += 1 - schedule.after
        told[block] += 1 - schedule.after
        if schedule.after and len(places) > 1:
            before, coming = around(places, len(own), schedule.past, schedule.ahead)
            gram[block] += schedule.after * (before.T @ before)
            told[block] += schedule.after * (before.T @ coming)
    return gram, told


def around(events: Items, items: int, past: float, ahead: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What came up to each event but the last, and what came after it, both (events - 1, items).

    An event counts exp(-1 / `past`) for each one after it, and what comes exp(-1 / `ahead`) for each one before it, of
    1 in all.
    """
    before, coming = faded(events, items, past)[:-1], faded(events[::-1], items, ahead)[::-1][1:]
    return before, coming / coming.sum(axis=1, keepdims=True)


def faded(events: Items, items: int, scale: float) -> NDArray[np.float64]:
    """(events, items): after each event, what came up to it, each less by exp(-1 / scale) for every one after it."""
    found = np.zeros((len(events), items))
    found[np.arange(len(events)), events] = 1
    for earlier, later in pairwise(found):
        later += earlier * exp(-1 / scale)
    return found
