"""Recommenders without training: popularity, the user's most frequent items, and user neighbours over baskets."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from models.data.interactions import Interactions, InteractionSequence, Split
from models.evaluation.ranking_metrics import sort_by_score

DAY_S = 86_400.0

Scores = NDArray[np.float32]
Rankings = NDArray[np.integer]


def popularity(training: Interactions, days: float | None = None) -> Scores:
    """Return the number of baskets with each item, (items,), in the last `days` of training."""
    sequences = training.users.values()
    items, times = (
        np.concatenate([sequence.items for sequence in sequences]),
        np.concatenate([sequence.times for sequence in sequences]),
    )
    if days is not None:
        items = items[times > times.max() - days * DAY_S]
    return np.bincount(items, minlength=len(training.ids)).astype(np.float32)


def rank_with_ties(scores: Scores, tie: Scores) -> Rankings:
    """Rank by scores (users, items). Of equal scores, the item with the greater `tie` (items,) comes first."""
    order = np.argsort(-tie, kind="stable")
    positions = sort_by_score(scores[:, order])
    return np.where(positions < 0, positions, order[positions])


def rank_randomly(split: Split, seed: int) -> Rankings:
    rng = np.random.default_rng(seed)
    return sort_by_score(rng.random((len(split.users), len(split.training.ids)), np.float32))


def most_popular(split: Split, days: float | None) -> Rankings:
    """Rank by popularity in the last `days`, or in all training if None. Ties go by all training."""
    scores = popularity(split.training, days)
    row = rank_with_ties(scores[None], popularity(split.training))
    return np.repeat(row, len(split.users), axis=0)


def own_most_frequent(split: Split, tie: str) -> Rankings:
    """Rank by the number of the user's baskets. Ties go by recency or popularity, then other items by popularity."""
    counts = popularity(split.training)
    scores = np.zeros((len(split.users), len(split.training.ids)), np.float32)
    for row, sequence in zip(scores, split.histories, strict=True):
        np.add.at(row, sequence.items, 1)
        if tie == "recent":
            recency = np.zeros(len(row))
            np.maximum.at(recency, sequence.items, sequence.baskets + 1)
            row += recency / (recency.max() + 1)
    return rank_with_ties(scores, counts)


def tifu_knn(
    split: Split, neighbours: int, own: float, groups: int, in_group: float, between: float, recent_days: float | None
) -> Rankings:
    """Rank with TIFU-kNN (Hu et al. 2020): a user is the time-decayed mean of baskets, mixed with the neighbours'.

    `own` is the weight of the user's own vector. `in_group` and `between` are the decay per basket within a group of
    baskets, and per group. Ties and unseen items go by popularity in the `recent_days`.
    """
    users = split.training.users
    vectors = decay_baskets(users.values(), len(split.training.ids), groups, in_group, between)
    positions = {user: index for index, user in enumerate(users)}
    queries = np.asarray([positions[user] for user in split.users])
    squares = (vectors**2).sum(axis=1)
    distances = squares[None] - 2 * vectors[queries] @ vectors.T
    distances[np.arange(len(queries)), queries] = np.inf
    nearest = np.argpartition(distances, neighbours, axis=1)[:, :neighbours]
    scores = own * vectors[queries]
    for row, neighbour_rows in zip(scores, nearest, strict=True):
        row += (1 - own) * vectors[neighbour_rows].mean(axis=0)
    return rank_with_ties(scores, popularity(split.training, recent_days))


def decay_baskets(
    sequences: Iterable[InteractionSequence], items: int, groups: int, in_group: float, between: float
) -> Scores:
    sequences = list(sequences)
    vectors = np.zeros((len(sequences), items), np.float32)
    for row, sequence in zip(vectors, sequences, strict=True):
        baskets = sequence.each_basket()
        size = -(-len(baskets) // groups)
        first = size * groups - len(baskets)  # an incomplete group is the oldest
        group_count = -(-len(baskets) // size)
        for index, basket in enumerate(baskets):
            group, offset = divmod(index + first, size)
            members = size - (first % size if group == first // size else 0)
            row[basket] += in_group ** (size - 1 - offset) / members * between ** (groups - 1 - group) / group_count
    return vectors
