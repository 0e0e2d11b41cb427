"""Recommenders that need no training: popularity, what the user had most, and user neighbours over baskets."""

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
    """(items,): how many baskets of the last `days` of training have the item."""
    trails = training.users.values()
    items, times = np.concatenate([one.items for one in trails]), np.concatenate([one.times for one in trails])
    if days is not None:
        items = items[times > times.max() - days * DAY_S]
    return np.bincount(items, minlength=len(training.ids)).astype(np.float32)


def ranked(scores: Scores, tie: Scores) -> Rankings:
    """Rankings of scores (users, items); of equal scores the one with the greater `tie` (items,) comes first."""
    order = np.argsort(-tie, kind="stable")
    places = sort_by_score(scores[:, order])
    return np.where(places < 0, places, order[places])


def by_chance(split: Split, seed: int) -> Rankings:
    chance = np.random.default_rng(seed)
    return sort_by_score(chance.random((len(split.users), len(split.training.ids)), np.float32))


def most_popular(split: Split, days: float | None) -> Rankings:
    """`days`: counted over these last days, all of training where None; ties by all of training."""
    scores = popularity(split.training, days)
    row = ranked(scores[None], popularity(split.training))
    return np.repeat(row, len(split.users), axis=0)


def own_most_frequent(split: Split, tie: str) -> Rankings:
    """By number of the user's baskets, of equal items the most recent or popular first; then others by popularity."""
    counts = popularity(split.training)
    scores = np.zeros((len(split.users), len(split.training.ids)), np.float32)
    for row, trail in zip(scores, split.histories, strict=True):
        np.add.at(row, trail.items, 1)
        if tie == "recent":
            last = np.zeros(len(row))
            np.maximum.at(last, trail.items, trail.baskets + 1)
            row += last / (last.max() + 1)
    return ranked(scores, counts)


def tifu_knn(
    split: Split, neighbours: int, own: float, groups: int, in_group: float, between: float, recent_days: float | None
) -> Rankings:
    """TIFU-kNN (Hu et al. 2020): a user is the time-decayed mean of his baskets, mixed with those of his neighbours.

    `own`: weight of the user's own vector; `in_group` and `between`: decay from a basket to the one before, within a
    group of baskets and from group to group; ties and strangers by popularity of the `recent_days`.
    """
    everyone = split.training.users
    vectors = decayed(everyone.values(), len(split.training.ids), groups, in_group, between)
    place = {user: number for number, user in enumerate(everyone)}
    asked = np.asarray([place[user] for user in split.users])
    squares = (vectors**2).sum(axis=1)
    near = squares[None] - 2 * vectors[asked] @ vectors.T
    near[np.arange(len(asked)), asked] = np.inf
    nearest = np.argpartition(near, neighbours, axis=1)[:, :neighbours]
    scores = own * vectors[asked]
    for row, others in zip(scores, nearest, strict=True):
        row += (1 - own) * vectors[others].mean(axis=0)
    return ranked(scores, popularity(split.training, recent_days))


def decayed(trails: Iterable[InteractionSequence], items: int, groups: int, in_group: float, between: float) -> Scores:
    trails = list(trails)
    vectors = np.zeros((len(trails), items), np.float32)
    for row, trail in zip(vectors, trails, strict=True):
        baskets = trail.each_basket()
        size = -(-len(baskets) // groups)
        first = size * groups - len(baskets)  # a group that is not full is the oldest
        used = -(-len(baskets) // size)
        for number, basket in enumerate(baskets):
            group, inside = divmod(number + first, size)
            members = size - (first % size if group == first // size else 0)
            row[basket] += in_group ** (size - 1 - inside) / members * between ** (groups - 1 - group) / used
    return vectors
