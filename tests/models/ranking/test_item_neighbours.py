"""Item neighbours: the closed form equals the ridge regression, and older events count less."""

from __future__ import annotations

from math import log

import numpy as np
import pytest

from models.data.interactions import InteractionSequence, make_sequence
from models.ranking.item_neighbours import ItemNeighbours
from models.recommender_training.item_neighbours import (
    NeighbourConfig,
    decayed_counts,
    fit_item_neighbours,
    fit_item_weights,
)

ITEMS, RIDGE = 7, 2.0


@pytest.fixture
def sequences() -> list[InteractionSequence]:
    """Sequences of items in random order, some of them repeated."""
    rng = np.random.default_rng(0)
    drawn = [rng.choice(ITEMS, rng.integers(1, 9)) for _ in range(30)]
    return [make_sequence((float(at), {int(item): np.nan}) for at, item in enumerate(items)) for items in drawn]


def rows_of(sequence: InteractionSequence, past: float, ahead: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of X and Y of a sequence, event by event, as fit_item_weights defines them."""
    before, after = (np.zeros((len(sequence) - 1, ITEMS)) for _ in range(2))
    for event in range(len(sequence) - 1):
        for position, item in enumerate(sequence.items):
            if position <= event:
                before[event, item] += np.exp(-(event - position) / past)
            else:
                after[event, item] += np.exp(-(position - event - 1) / ahead)
    return before, after / after.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("after", [0.0, 0.3, 1.0])
def test_weights_equal_the_ridge_regression_of_each_item_on_the_rest(
    sequences: list[InteractionSequence], after: float
) -> None:
    config = NeighbourConfig(weight=2.0, ridge=RIDGE, kept=ITEMS, after=after, past=4.0, ahead=2.0)
    baskets = np.asarray([[item in sequence.items for item in range(ITEMS)] for sequence in sequences], float)
    pairs = [(baskets * (1 - after) ** 0.5, baskets * (1 - after) ** 0.5)]
    for sequence in sequences:
        before, later = rows_of(sequence, 4.0, 2.0)
        pairs.append((before * after**0.5, later * after**0.5))
    inputs, outputs = (np.concatenate(rows) for rows in zip(*pairs, strict=True))
    weights = fit_item_weights(sequences, ITEMS, config)
    for item in range(ITEMS):
        rest = np.delete(np.arange(ITEMS), item)
        x = inputs[:, rest]
        expected = np.linalg.solve(x.T @ x + RIDGE * np.eye(ITEMS - 1), x.T @ outputs[:, item])
        np.testing.assert_allclose(weights[rest, item], expected, atol=1e-10)
        assert weights[item, item] == 0
    neighbours = fit_item_neighbours(sequences, ITEMS, config)
    dense = np.zeros((ITEMS, ITEMS))
    np.put_along_axis(dense, neighbours.indices, neighbours.weights, axis=1)
    np.testing.assert_allclose(dense, 2 * weights, atol=1e-6)


def test_weights_for_popular_items_are_lower(sequences: list[InteractionSequence]) -> None:
    plain, fair = (
        fit_item_neighbours(
            sequences, ITEMS + 1, NeighbourConfig(weight=1.0, ridge=RIDGE, kept=ITEMS + 1, popular=popular)
        )
        for popular in (0.0, 0.5)
    )
    users = np.asarray([sum(item in sequence.items for sequence in sequences) for item in range(ITEMS)] + [1])
    for item in range(ITEMS):
        before, after = (dict(zip(fitted.indices[item], fitted.weights[item], strict=True)) for fitted in (plain, fair))
        for other in range(ITEMS + 1):
            assert after[other] == pytest.approx(before[other] / users[other] ** 0.5, abs=1e-7)


def test_largest_weights_are_kept(sequences: list[InteractionSequence]) -> None:
    config = NeighbourConfig(weight=1.0, ridge=RIDGE, kept=4)
    weights = fit_item_neighbours(sequences, ITEMS, config).weights
    assert weights.shape == (ITEMS, 4)
    assert (np.diff(np.abs(weights), axis=1) <= 0).all()
    assert np.abs(weights[:, 0]) == pytest.approx(
        np.abs(fit_item_weights(sequences, ITEMS, config)).max(axis=1), rel=1e-6
    )


def test_later_items_are_predicted_from_earlier_ones() -> None:
    sequences = [make_sequence((float(at), {item: np.nan}) for at, item in enumerate((0, 1, 2)))] * 9
    config = NeighbourConfig(weight=1.0, ridge=1.0, kept=3, after=1.0, past=1.0, ahead=1.0)
    weights = fit_item_weights(sequences, 3, config)
    assert weights[0, 1] > 0.3
    assert weights[1, 2] > 0.3
    assert abs(weights[1, 0]) < 1e-9


def test_decayed_counts_weigh_the_newest_event_in_full() -> None:
    counts = decayed_counts(np.asarray([0, 1, 0]), 3, 1 / log(2))
    np.testing.assert_allclose(counts, np.asarray([[1, 0, 0], [0.5, 1, 0], [1.25, 0.5, 0]]))


@pytest.fixture
def neighbours() -> ItemNeighbours:
    rng = np.random.default_rng(1)
    indices = np.stack([rng.permutation(ITEMS)[:4] for _ in range(ITEMS)]).astype(np.int32)
    return ItemNeighbours(indices, rng.normal(size=(ITEMS, 4)).astype(np.float32), recency_decay=0.5)


def test_an_item_counts_by_its_newest_liked_event(neighbours: ItemNeighbours) -> None:
    items, liked = np.asarray([3, 5, 3, -1, 6, 0]), np.asarray([True, True, True, True, False, True])
    expected = np.zeros(ITEMS + 1)
    for item, later in ((5, 3), (3, 2), (0, 0)):
        expected[neighbours.indices[item]] += neighbours.weights[item] * 0.5**later
    expected[[3, 5, 6, 0, -1]] = 0
    np.testing.assert_allclose(neighbours.scores(items, liked), expected, atol=1e-6)


def test_contributions_of_events_add_up_to_the_neighbour_scores(neighbours: ItemNeighbours) -> None:
    items, candidates = np.asarray([3, 5, 3, -1, 6, 3]), np.append(np.arange(ITEMS), -1)
    liked = np.asarray([True, True, True, True, False, False])
    contributions = neighbours.contributions(items, liked, candidates)
    assert np.abs(contributions).max() > 0.1
    np.testing.assert_allclose(contributions.sum(axis=1), neighbours.scores(items, liked)[candidates], atol=1e-6)
    np.testing.assert_array_equal(contributions[:, 0], contributions[:, 2])
    assert not contributions[:, 3:].any()
