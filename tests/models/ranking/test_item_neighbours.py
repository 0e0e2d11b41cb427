"""What items say of each other: the closed form is the regression that it stands for, and older items say less."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from models.data.interactions import InteractionSequence, make_sequence
from models.ranking.item_neighbours import ItemNeighbours
from models.training.item_neighbours import NeighbourConfig, decayed_counts, fit_item_neighbours, fit_item_weights

ITEMS, RIDGE = 7, 2.0


@pytest.fixture
def trails() -> list[InteractionSequence]:
    """Items in random order, some of them twice."""
    chance = np.random.default_rng(0)
    taken = [chance.choice(ITEMS, chance.integers(1, 9)) for _ in range(30)]
    return [make_sequence((float(at), {int(item): np.nan}) for at, item in enumerate(own)) for own in taken]


def rows_of(trail: InteractionSequence, past: float, ahead: float) -> tuple[np.ndarray, np.ndarray]:
    """Event by event, as `around` says."""
    before, coming = (np.zeros((len(trail) - 1, ITEMS)) for _ in range(2))
    for now in range(len(trail) - 1):
        for at, item in enumerate(trail.items):
            if at <= now:
                before[now, item] += np.exp(-(now - at) / past)
            else:
                coming[now, item] += np.exp(-(at - now - 1) / ahead)
    return before, coming / coming.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("after", [0.0, 0.3, 1.0])
def test_weights_for_an_item_are_the_ridge_regression_of_it_on_the_others(
    trails: list[InteractionSequence], after: float
) -> None:
    schedule = NeighbourConfig(weight=2.0, ridge=RIDGE, kept=ITEMS, after=after, past=4.0, ahead=2.0)
    together = np.asarray([[item in trail.items for item in range(ITEMS)] for trail in trails], float)
    parts = [(together * (1 - after) ** 0.5, together * (1 - after) ** 0.5)]
    for trail in trails:
        before, coming = rows_of(trail, 4.0, 2.0)
        parts.append((before * after**0.5, coming * after**0.5))
    told, from_what = (np.concatenate(rows) for rows in ([y for _, y in parts], [x for x, _ in parts]))
    found = fit_item_weights(trails, ITEMS, schedule)
    for item in range(ITEMS):
        others = np.delete(np.arange(ITEMS), item)
        x = from_what[:, others]
        expected = np.linalg.solve(x.T @ x + RIDGE * np.eye(ITEMS - 1), x.T @ told[:, item])
        np.testing.assert_allclose(found[others, item], expected, atol=1e-10)
        assert found[item, item] == 0
    kept = fit_item_neighbours(trails, ITEMS, schedule)
    dense = np.zeros((ITEMS, ITEMS))
    np.put_along_axis(dense, kept.numbers, kept.weights, axis=1)
    np.testing.assert_allclose(dense, 2 * found, atol=1e-6)


def test_of_what_many_took_less_is_said(trails: list[InteractionSequence]) -> None:
    plain, fair = (
        fit_item_neighbours(
            trails, ITEMS + 1, NeighbourConfig(weight=1.0, ridge=RIDGE, kept=ITEMS + 1, popular=popular)
        )
        for popular in (0.0, 0.5)
    )
    users = np.asarray([sum(item in trail.items for trail in trails) for item in range(ITEMS)] + [1])
    for item in range(ITEMS):
        before, after = (dict(zip(one.numbers[item], one.weights[item], strict=True)) for one in (plain, fair))
        for other in range(ITEMS + 1):
            assert after[other] == pytest.approx(before[other] / users[other] ** 0.5, abs=1e-7)


def test_largest_weights_are_kept(trails: list[InteractionSequence]) -> None:
    schedule = NeighbourConfig(weight=1.0, ridge=RIDGE, kept=4)
    weights = fit_item_neighbours(trails, ITEMS, schedule).weights
    assert weights.shape == (ITEMS, 4)
    assert (np.diff(np.abs(weights), axis=1) <= 0).all()
    assert np.abs(weights[:, 0]) == pytest.approx(
        np.abs(fit_item_weights(trails, ITEMS, schedule)).max(axis=1), rel=1e-6
    )


def test_what_comes_after_is_told_from_what_came_before() -> None:
    trails = [make_sequence((float(at), {item: np.nan}) for at, item in enumerate((0, 1, 2)))] * 9
    schedule = NeighbourConfig(weight=1.0, ridge=1.0, kept=3, after=1.0, past=1.0, ahead=1.0)
    weights = fit_item_weights(trails, 3, schedule)
    assert weights[0, 1] > 0.3
    assert weights[1, 2] > 0.3
    assert abs(weights[1, 0]) < 1e-9


def test_a_faded_history_counts_the_newest_in_full() -> None:
    found = decayed_counts(np.asarray([0, 1, 0]), 3, 1 / log(2))
    np.testing.assert_allclose(found, np.asarray([[1, 0, 0], [0.5, 1, 0], [1.25, 0.5, 0]]))


@pytest.fixture
def neighbours() -> ItemNeighbours:
    chance = np.random.default_rng(1)
    numbers = np.stack([chance.permutation(ITEMS)[:4] for _ in range(ITEMS)]).astype(np.int32)
    return ItemNeighbours(numbers, chance.normal(size=(ITEMS, 4)).astype(np.float32), recency_decay=0.5)


def test_an_item_counts_by_its_newest_liked_event(neighbours: ItemNeighbours) -> None:
    own, liked = np.asarray([3, 5, 3, -1, 6, 0]), np.asarray([True, True, True, True, False, True])
    expected = np.zeros(ITEMS + 1)
    for item, after in ((5, 3), (3, 2), (0, 0)):
        expected[neighbours.numbers[item]] += neighbours.weights[item] * 0.5**after
    expected[[3, 5, 6, 0, -1]] = 0
    np.testing.assert_allclose(neighbours.scores(own, liked), expected, atol=1e-6)


def test_parts_of_events_add_up_to_what_neighbours_say(neighbours: ItemNeighbours) -> None:
    own, candidates = np.asarray([3, 5, 3, -1, 6, 3]), np.append(np.arange(ITEMS), -1)
    liked = np.asarray([True, True, True, True, False, False])
    parts = neighbours.contributions(own, liked, candidates)
    assert np.abs(parts).max() > 0.1
    np.testing.assert_allclose(parts.sum(axis=1), neighbours.scores(own, liked)[candidates], atol=1e-6)
    np.testing.assert_array_equal(parts[:, 0], parts[:, 2])
    assert not parts[:, 3:].any()
