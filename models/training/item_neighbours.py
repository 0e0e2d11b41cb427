"""Fits item-to-item weights (EASE, SLIT)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf

import numpy as np
from numpy.typing import NDArray

from models.data.interactions import InteractionSequence, Items
from models.ranking.item_neighbours import ItemNeighbours


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourConfig:
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


def fit_item_neighbours(
    trails: Collection[InteractionSequence], items: int, schedule: NeighbourConfig
) -> ItemNeighbours:
    """The largest weights of each item in amount, times the schedule's weight; what is popular is said less."""
    users = np.bincount(np.concatenate([np.unique(trail.items) for trail in trails]), minlength=items)
    weights = fit_item_weights(trails, items, schedule) * schedule.weight / np.maximum(users, 1) ** schedule.popular
    kept = np.argsort(-np.abs(weights), axis=1)[:, : schedule.kept]
    return ItemNeighbours(
        kept.astype(np.int32), np.take_along_axis(weights, kept, axis=1).astype(np.float32), schedule.fade
    )


def fit_item_weights(
    trails: Collection[InteractionSequence], items: int, schedule: NeighbourConfig
) -> NDArray[np.float64]:
    """B (items, items)."""
    gram, told = moments(trails, items, schedule)
    inverse = np.linalg.inv(gram)
    weights: NDArray[np.float64] = inverse @ told
    weights -= inverse * (np.diag(weights) / np.diag(inverse))
    np.fill_diagonal(weights, 0)
    return weights


def moments(
    trails: Collection[InteractionSequence], items: int, schedule: NeighbourConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """XᵀX + ridge · I and XᵀY, both (items, items)."""
    gram, told = schedule.ridge * np.eye(items), np.zeros((items, items))
    for trail in trails:
        own, places = np.unique(trail.items, return_inverse=True)
        block = np.ix_(own, own)
        gram[block] += 1 - schedule.after
        told[block] += 1 - schedule.after
        if schedule.after and len(places) > 1:
            before, coming = co_occurrence_around(places, len(own), schedule.past, schedule.ahead)
            gram[block] += schedule.after * (before.T @ before)
            told[block] += schedule.after * (before.T @ coming)
    return gram, told


def co_occurrence_around(
    events: Items, items: int, past: float, ahead: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What came up to each event but the last, and what came after it, both (events - 1, items).

    An event counts exp(-1 / `past`) for each one after it, and what comes exp(-1 / `ahead`) for each one before it, of
    1 in all.
    """
    before, coming = decayed_counts(events, items, past)[:-1], decayed_counts(events[::-1], items, ahead)[::-1][1:]
    return before, coming / coming.sum(axis=1, keepdims=True)


def decayed_counts(events: Items, items: int, scale: float) -> NDArray[np.float64]:
    """(events, items): after each event, what came up to it, each less by exp(-1 / scale) for every one after it."""
    found = np.zeros((len(events), items))
    found[np.arange(len(events)), events] = 1
    for earlier, later in pairwise(found):
        later += earlier * exp(-1 / scale)
    return found
