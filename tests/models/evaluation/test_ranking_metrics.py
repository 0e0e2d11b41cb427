from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from models.evaluation.ranking_metrics import (
    NO_ITEM,
    coverage,
    drop_items,
    measure_rankings,
    per_user_metrics,
    sort_by_score,
    target_ranks,
)


def items(*numbers: int) -> NDArray[np.int64]:
    return np.asarray(numbers, np.int64)


RANKINGS = np.asarray([[3, 1, 0, 2, 4], [0, 1, 2, 3, 4]])


def test_one_of_two_relevant_items_is_among_the_first() -> None:
    metrics = per_user_metrics(RANKINGS, [items(1, 4), items(2)], 2)
    assert metrics.hit.tolist() == [1, 0]
    assert metrics.recall.tolist() == [0.5, 0]
    ideal = 1 + 1 / math.log2(3)
    assert metrics.ndcg == pytest.approx([(1 / math.log2(3)) / ideal, 0])
    assert metrics.reciprocal_rank == pytest.approx([1 / 2, 1 / 3])


def test_the_ideal_has_no_more_than_k_items() -> None:
    metrics = per_user_metrics(RANKINGS[:1], [items(3, 1, 0, 2)], 2)
    assert metrics.ndcg == pytest.approx([1])
    assert metrics.recall == pytest.approx([0.5])


def test_the_ideal_has_no_more_items_than_are_relevant() -> None:
    assert per_user_metrics(RANKINGS[:1], [items(3)], 5).ndcg == pytest.approx([1])
    assert per_user_metrics(RANKINGS[:1], [items(0)], 5).ndcg == pytest.approx([1 / math.log2(4)])


def test_means_are_over_users_and_not_over_relevant_items() -> None:
    metrics = measure_rankings(RANKINGS, [items(3, 1, 2, 4), items(4)], items=8, k=2)
    assert (metrics.users, metrics.k) == (2, 2)
    assert metrics.hit_rate == 0.5
    assert metrics.recall == pytest.approx(0.25)
    assert metrics.mrr == pytest.approx((1 + 1 / 5) / 2)
    assert metrics.coverage == pytest.approx(3 / 8)


def test_an_unranked_item_counts_as_a_miss() -> None:
    metrics = per_user_metrics(RANKINGS[:, :3], [items(4), items(4, 2)], 3)
    assert metrics.reciprocal_rank == pytest.approx([0, 1 / 3])
    assert metrics.recall == pytest.approx([0, 0.5])


def test_the_padding_of_a_short_ranking_is_no_item() -> None:
    short = np.asarray([[2, NO_ITEM, NO_ITEM], [1, 0, NO_ITEM]])
    assert per_user_metrics(short, [items(0), items(0)], 3).hit.tolist() == [0, 1]
    assert coverage(short, items=4, k=3) == pytest.approx(3 / 4)


def test_ranks_follow_the_order_of_the_targets() -> None:
    users, ranks = target_ranks(RANKINGS, [items(2, 3), items()])
    assert (users.tolist(), ranks.tolist()) == ([0, 0], [3, 0])


def test_excluded_items_leave_the_ranking() -> None:
    dropped = drop_items(RANKINGS, [items(3, 0), items()])
    assert dropped.tolist() == [[1, 2, 4, NO_ITEM, NO_ITEM], [0, 1, 2, 3, 4]]
    assert drop_items(dropped, [items(2, 3), items(0)]).tolist() == [[1, 4, *[NO_ITEM] * 3], [1, 2, 3, 4, NO_ITEM]]


def test_ties_keep_the_order_of_the_items() -> None:
    scores = np.asarray([[0.5, 2, 0.5, -np.inf]])
    assert sort_by_score(scores).tolist() == [[1, 0, 2, NO_ITEM]]


def test_a_user_without_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match="user 1 has no target"):
        per_user_metrics(RANKINGS, [items(1), items()], 2)


def test_rankings_and_targets_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rankings for 1 users"):
        measure_rankings(RANKINGS, [items(1)], items=5)


def test_random_rankings_match_the_written_out_definitions() -> None:
    rng = np.random.default_rng(0)
    rankings = np.stack([rng.permutation(30) for _ in range(40)])
    targets = [rng.choice(30, rng.integers(1, 15), replace=False) for _ in range(40)]
    metrics = per_user_metrics(rankings, targets, 10)
    for user, (row, relevant_items) in enumerate(zip(rankings.tolist(), targets, strict=True)):
        relevant = [item in relevant_items for item in row]
        gain = sum(1 / math.log2(rank + 2) for rank in range(10) if relevant[rank])
        ideal = sum(1 / math.log2(rank + 2) for rank in range(min(10, len(relevant_items))))
        assert metrics.ndcg[user] == pytest.approx(gain / ideal)
        assert metrics.recall[user] == pytest.approx(sum(relevant[:10]) / len(relevant_items))
        assert metrics.reciprocal_rank[user] == pytest.approx(1 / (relevant.index(True) + 1))
