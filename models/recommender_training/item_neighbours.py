"""Fits item-to-item weights in closed form (EASE, SLIT)."""

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
    """The settings of neighbour weights. `models/configs/recommend.toml` explains each field."""

    weight: float
    ridge: float
    kept: int
    after: float = 0.0
    past: float = inf
    ahead: float = inf
    asked: float = inf
    popular: float = 0.0

    @property
    def recency_decay(self) -> float:
        """The factor of an item of a history for each later event."""
        return exp(-1 / self.asked)


def fit_item_neighbours(
    sequences: Collection[InteractionSequence], items: int, config: NeighbourConfig
) -> ItemNeighbours:
    """Return the weights of each item that are largest in amount, times the configured weight.

    Weights of popular items are divided by a power of the number of their users.
    """
    users = np.bincount(np.concatenate([np.unique(sequence.items) for sequence in sequences]), minlength=items)
    weights = fit_item_weights(sequences, items, config) * config.weight / np.maximum(users, 1) ** config.popular
    largest = np.argsort(-np.abs(weights), axis=1)[:, : config.kept]
    return ItemNeighbours(
        largest.astype(np.int32),
        np.take_along_axis(weights, largest, axis=1).astype(np.float32),
        config.recency_decay,
    )


def fit_item_weights(
    sequences: Collection[InteractionSequence], items: int, config: NeighbourConfig
) -> NDArray[np.float64]:
    """Return the matrix B (items, items) of item-to-item weights, with a zero diagonal."""
    gram, cross = second_moments(sequences, items, config)
    inverse = np.linalg.inv(gram)
    weights: NDArray[np.float64] = inverse @ cross
    weights -= inverse * (np.diag(weights) / np.diag(inverse))
    np.fill_diagonal(weights, 0)
    return weights


def second_moments(
    sequences: Collection[InteractionSequence], items: int, config: NeighbourConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return XᵀX + ridge · I and XᵀY, both (items, items)."""
    gram, cross = config.ridge * np.eye(items), np.zeros((items, items))
    for sequence in sequences:
        distinct, events = np.unique(sequence.items, return_inverse=True)
        block = np.ix_(distinct, distinct)
        gram[block] += 1 - config.after
        cross[block] += 1 - config.after
        if config.after and len(events) > 1:
            past, future = past_and_future_counts(events, len(distinct), config.past, config.ahead)
            gram[block] += config.after * (past.T @ past)
            cross[block] += config.after * (past.T @ future)
    return gram, cross


def past_and_future_counts(
    events: Items, items: int, past_scale: float, future_scale: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the decayed counts of items up to each event but the last, and after it, both (events - 1, items).

    A past event decays by exp(-1 / `past_scale`) per later event. A future event decays by exp(-1 / `future_scale`) per
    earlier event. Future counts are normalised to sum to 1.
    """
    past = decayed_counts(events, items, past_scale)[:-1]
    future = decayed_counts(events[::-1], items, future_scale)[::-1][1:]
    return past, future / future.sum(axis=1, keepdims=True)


def decayed_counts(events: Items, items: int, scale: float) -> NDArray[np.float64]:
    """Return the counts (events, items) of items up to each event, decayed by exp(-1 / scale) per later event."""
    counts = np.zeros((len(events), items))
    counts[np.arange(len(events)), events] = 1
    for earlier, later in pairwise(counts):
        later += earlier * exp(-1 / scale)
    return counts
