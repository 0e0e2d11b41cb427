"""Ranking metrics: hit rate, recall, NDCG, MRR and catalogue coverage.

They are computed over full rankings, never over sampled negatives. Relevance is binary, and a user may have several
relevant items. Knows nothing of how a ranking is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NO_ITEM = -1
"""Padding at the end of a shorter ranking."""

Items = NDArray[np.integer]
Figures = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class UserMetrics:
    """Metrics per user, (users,). Two of these on the same users can be compared user by user."""

    hit: Figures
    recall: Figures
    ndcg: Figures
    reciprocal_rank: Figures


@dataclass(frozen=True, slots=True)
class RankingMetrics:
    """Means over the users. `coverage` is the share of the catalogue that is in the first `k` of at least one user."""

    users: int
    k: int
    hit_rate: float
    recall: float
    ndcg: float
    mrr: float
    coverage: float


def target_ranks(rankings: Items, targets: Sequence[Items]) -> tuple[Items, Items]:
    """Return the user and the rank, counted from 0, of each target of all users in turn, (targets,) each.

    `rankings` (users, depth) holds item numbers, best first, with `NO_ITEM` at the end of a shorter row. A target that
    is not in the row has the rank `depth`. Raises ValueError if rankings and targets differ in length.
    """
    if len(rankings) != len(targets):
        raise ValueError(f"{len(rankings)} rankings for {len(targets)} users")
    users = np.repeat(np.arange(len(targets)), [len(items) for items in targets])
    items = np.concatenate([np.zeros(0, np.int64), *targets]).astype(np.int64)
    depth = rankings.shape[1]
    width = int(max(rankings.max(initial=NO_ITEM), items.max(initial=NO_ITEM))) + 1
    ranks = np.full((len(rankings), width + 1), depth, np.int32)  # NO_ITEM writes to the last column
    np.put_along_axis(ranks, rankings % (width + 1), np.arange(depth, dtype=np.int32)[None], axis=1)
    return users, ranks[users, items]


def per_user_metrics(rankings: Items, targets: Sequence[Items], k: int) -> UserMetrics:
    """Return the metrics of each user. MRR reads the whole of `rankings`.

    `targets` are distinct item numbers. Raises ValueError for a user without any.
    """
    counts = np.asarray([len(items) for items in targets])
    if not counts.all():
        raise ValueError(f"user {int(counts.argmin())} has no target")
    users, ranks = target_ranks(rankings, targets)
    is_hit = ranks < k
    hits = np.bincount(users, is_hit, len(targets))
    gains = np.bincount(users, np.where(is_hit, discount(ranks), 0), len(targets))
    ideal = np.cumsum(discount(np.arange(k)))[np.minimum(counts, k) - 1]
    first = np.full(len(targets), rankings.shape[1])
    np.minimum.at(first, users, ranks)
    reciprocal = np.where(first < rankings.shape[1], 1 / (first + 1), 0)
    return UserMetrics((hits > 0).astype(np.float64), hits / counts, gains / ideal, reciprocal)


def discount(ranks: Items) -> Figures:
    return np.asarray(1 / np.log2(ranks + 2.0))


def coverage(rankings: Items, items: int, k: int) -> float:
    shown = np.unique(rankings[:, :k])
    return float((shown != NO_ITEM).sum() / items)


def measure_rankings(rankings: Items, targets: Sequence[Items], items: int, k: int = 10) -> RankingMetrics:
    """Return the means over users, for a catalogue of `items` items."""
    per_user = per_user_metrics(rankings, targets, k)
    return RankingMetrics(
        users=len(targets),
        k=k,
        hit_rate=float(per_user.hit.mean()),
        recall=float(per_user.recall.mean()),
        ndcg=float(per_user.ndcg.mean()),
        mrr=float(per_user.reciprocal_rank.mean()),
        coverage=coverage(rankings, items, k),
    )


def sort_by_score(scores: NDArray[np.floating]) -> NDArray[np.int32]:
    """Return rankings (users, items) by decreasing score (users, items).

    Equal scores keep the order of the items, and -inf is left out.
    """
    order = np.argsort(-scores, axis=1, kind="stable").astype(np.int32)
    return np.where(np.isneginf(np.take_along_axis(scores, order, axis=1)), np.int32(NO_ITEM), order)


def drop_items(rankings: Items, excluded: Sequence[Items]) -> Items:
    """Return the rankings without the `excluded` items of each user, and with `NO_ITEM` at the end of each row."""
    users, ranks = target_ranks(rankings, excluded)
    mask = np.ones((len(rankings), rankings.shape[1] + 1), np.bool_)
    mask[users, ranks] = False
    mask = mask[:, :-1] & (rankings != NO_ITEM)
    order = np.argsort(~mask, axis=1, kind="stable")
    return np.where(np.take_along_axis(mask, order, axis=1), np.take_along_axis(rankings, order, axis=1), NO_ITEM)
