"""Popularity, frequency, neighbours, linear models and raw texts rank as they are defined."""

from __future__ import annotations

import numpy as np
import pytest

from models.data.interactions import Split, hold_out_last
from models.prediction.normalize import l2_normalize
from tests.bench.recommend_quality.linear import linear
from tests.bench.recommend_quality.methods import Method, as_rank, grid, simple
from tests.bench.recommend_quality.raw import raw_encoder
from tests.bench.recommend_quality.simple import (
    decay_baskets,
    most_popular,
    own_most_frequent,
    popularity,
    rank_randomly,
    rank_with_ties,
    tifu_knn,
)
from tests.support.tiny_baskets import ITEMS, interactions


def test_popularity_counts_the_baskets_of_the_last_days(split: Split) -> None:
    assert popularity(split.training).tolist() == [1, 2, 1, 2, 2, 1]
    assert popularity(split.training, days=0.5).tolist() == [0, 1, 1, 1, 1, 0]
    assert most_popular(split, None)[1].tolist() == [1, 3, 4, 0, 2, 5]


def test_of_equal_scores_the_more_popular_comes_first() -> None:
    scores = np.asarray([[0, 1, 0, 0]], np.float32)
    assert rank_with_ties(scores, np.asarray([1, 0, 3, 2], np.float32)).tolist() == [[1, 2, 3, 0]]


@pytest.mark.parametrize(("tie", "first"), [("recent", [1, 2, 0]), ("popular", [1, 0, 2])])
def test_the_users_items_are_ranked_by_frequency(split: Split, tie: str, first: list[int]) -> None:
    rankings = own_most_frequent(split, tie)
    assert rankings[0].tolist() == [*first, 3, 4, 5]
    assert rankings[1].tolist()[:2] == [3, 4]


def test_decay_weights_groups_of_baskets_by_age() -> None:
    sequence = interactions([[0], [1], [2, 3]]).users["u0"]
    (row,) = decay_baskets([sequence], ITEMS, groups=2, in_group=0.5, between=0.1)
    assert row.tolist() == pytest.approx([0.1 / 2, 0.5 / 4, 1 / 4, 1 / 4, 0, 0])


def test_neighbours_add_items_that_are_new_to_the_user() -> None:
    baskets = [[0], [1]]
    split = hold_out_last(interactions([*baskets, [3]], [*baskets, [5], [5]], [[3], [4], [4]], [[2, 3], [2, 3]]))
    rankings = tifu_knn(split, neighbours=1, own=0.5, groups=2, in_group=1.0, between=1.0, recent_days=None)
    assert rankings[0].tolist()[:3] == [0, 1, 5]


@pytest.mark.parametrize("method", [*simple(), Method("random", as_rank(rank_randomly), grid(seed=(3,)))])
def test_every_simple_method_ranks_every_item_once(split: Split, method: Method) -> None:
    setting = {**method.settings[0], **({"neighbours": 2} if "neighbours" in method.settings[0] else {})}
    ((used_setting, rankings),) = method.rank(split, setting)
    assert used_setting == setting
    assert np.sort(rankings, axis=1).tolist() == [list(range(ITEMS))] * 2


def test_ease_ranks_co_occurring_items_first() -> None:
    """Items 0, 1 and 2 occur together, as do 3 and 4. A user with 0 and 1 gets 2 first."""
    split = hold_out_last(interactions(*[[[0, 1, 2]]] * 6, *[[[3, 4]]] * 9, [[0, 1], [2]]))
    (ranking,) = linear(split, ridge=0.5).tolist()
    assert ranking[0] == 2
    assert sorted(ranking) == list(range(ITEMS))


def test_transitions_have_a_direction() -> None:
    """0 precedes 1, and 1 precedes 2. After 1, 2 ranks first, although 0 occurs with 1 more often."""
    split = hold_out_last(interactions(*[[[0], [1], [5]]] * 8, *[[[1], [2], [5]]] * 6, [[1], [5]]))
    ranking = linear(split, ridge=0.1, after=1.0, past=1.0, ahead=1.0, asked=1.0)[-1].tolist()
    assert ranking[0] == 2
    assert sorted(ranking) == list(range(ITEMS))


def test_texts_alone_rank_items_near_the_history_first(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = np.asarray([[np.cos(angle), np.sin(angle)] for angle in range(ITEMS)], np.float32)
    monkeypatch.setattr("tests.bench.recommend_quality.raw.embed", lambda base, texts: circle)
    split = hold_out_last(interactions([[0], [2], [5]]))
    for method in raw_encoder("base", split.training.texts):
        firsts = {}
        for setting in method.settings:
            ((_, rankings),) = method.rank(split, setting)
            firsts[setting["baskets"]] = int(rankings[0, 0])
        assert firsts == {None: 1, 1: 2}


def test_subtracting_the_mean_separates_texts_with_similar_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All vectors are similar, with small differences. The history of 0 and 1 is nearest to 5, between them."""
    offsets = np.asarray([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, -1], [0, -1, -1], [0.6, 0.6, 0]], np.float32)
    monkeypatch.setattr(
        "tests.bench.recommend_quality.raw.embed", lambda base, texts: l2_normalize(offsets * 0.1 + [0, 0, 9])
    )
    split = hold_out_last(interactions([[0], [1], [5]]))
    plain, centred = raw_encoder("base", split.training.texts)
    assert (plain.name, centred.name) == ("raw encoder", "raw encoder, without its mean")
    for method in (plain, centred):
        ((_, rankings),) = method.rank(split, {"prefix": "", "baskets": None})
        assert np.sort(rankings[0]).tolist() == list(range(ITEMS))
    assert rankings[0, 0] == 5
