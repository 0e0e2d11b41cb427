"""How good rankings are: hit rate, recall, NDCG, MRR and how much of the catalogue is ever shown.

Over full rankings, never over sampled negatives. Relevance is binary, and a user may have several relevant items. Knows
nothing of how a ranking was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_ITEM = -1
"""Fills the end of a ranking's row that is shorter than the others."""

Items = NDArray[np.integer]
Figures = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class UserFigures:
    """One figure a user, (users,): a pair of these on the same users can be compared user by user."""

    hit: Figures
    recall: Figures
    ndcg: Figures
    reciprocal_rank: Figures


@dataclass(frozen=True, slots=True)
class RankingMetrics:
    """Means over the users. `coverage`: share of the catalogue's items that are among some user's first `k`."""

    users: int
    k: int
    hit_rate: float
    recall: float
    ndcg: float
    mrr: float
    coverage: float


def target_ranks(rankings: Items, targets: Sequence[Items]) -> tuple[Items, Items]:
    """Of each target, all users' one after the other: its user and its place, counted from 0.

    `rankings` is (users, depth): item numbers, best first, `NO_ITEM` at the end of a shorter row. A target that the
    row does not have is at place `depth`.
    """
    if len(rankings) != len(targets):
        raise ValueError(f"{len(rankings)} rankings for {len(targets)} users")
    users = np.repeat(np.arange(len(targets)), [len(own) for own in targets])
    wanted = np.concatenate([np.zeros(0, np.int64), *targets]).astype(np.int64)
    depth = rankings.shape[1]
    width = int(max(rankings.max(initial=NO_ITEM), wanted.max(initial=NO_ITEM))) + 1
    place = np.full((len(rankings), width + 1), depth, np.int32)  # the last column takes what NO_ITEM writes
    np.put_along_axis(place, rankings % (width + 1), np.arange(depth, dtype=np.int32)[None], axis=1)
    return users, place[users, wanted]


def per_user_metrics(rankings: Items, targets: Sequence[Items], k: int) -> UserFigures:
    """Of each user with `targets`, distinct item numbers and at least one; MRR reads the whole of `rankings`."""
    counts = np.asarray([len(own) for own in targets])
    if not counts.all():
        raise ValueError(f"user {int(counts.argmin())} has no target")
    users, place = target_ranks(rankings, targets)
    found = place < k
    hits = np.bincount(users, found, len(targets))
    gains = np.bincount(users, np.where(found, discount(place), 0), len(targets))
    ideal = np.cumsum(discount(np.arange(k)))[np.minimum(counts, k) - 1]
    first = np.full(len(targets), rankings.shape[1])
    np.minimum.at(first, users, place)
    reciprocal = np.where(first < rankings.shape[1], 1 / (first + 1), 0)
    return UserFigures((hits > 0).astype(np.float64), hits / counts, gains / ideal, reciprocal)


def discount(place: Items) -> Figures:
    return np.asarray(1 / np.log2(place + 2.0))


def coverage(rankings: Items, items: int, k: int) -> float:
    shown = np.unique(rankings[:, :k])
    return float((shown != NO_ITEM).sum() / items)


def measure_rankings(rankings: Items, targets: Sequence[Items], items: int, k: int = 10) -> RankingMetrics:
    """`items`: how many the catalogue has."""
    found = per_user_metrics(rankings, targets, k)
    return RankingMetrics(
        users=len(targets),
        k=k,
        hit_rate=float(found.hit.mean()),
        recall=float(found.recall.mean()),
        ndcg=float(found.ndcg.mean()),
        mrr=float(found.reciprocal_rank.mean()),
        coverage=coverage(rankings, items, k),
    )


def sort_by_score(scores: NDArray[np.floating]) -> NDArray[np.int32]:
    """Rankings (users, items) of scores (users, items); equal scores in the items' order, -inf is left out."""
    order = np.argsort(-scores, axis=1, kind="stable").astype(np.int32)
    return np.where(np.isneginf(np.take_along_axis(scores, order, axis=1)), np.int32(NO_ITEM), order)


def drop_items(rankings: Items, left_out: Sequence[Items]) -> Items:
    """The rankings with each user's `left_out` items taken out, and `NO_ITEM` at the end of each row instead."""
    users, place = target_ranks(rankings, left_out)
    kept = np.ones((len(rankings), rankings.shape[1] + 1), np.bool_)
    kept[users, place] = False
    kept = kept[:, :-1] & (rankings != NO_ITEM)
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.where(np.take_along_axis(kept, order, axis=1), np.take_along_axis(rankings, order, axis=1), NO_ITEM)
