"""What items say of each other: the closed form is the regression that it stands for."""

from __future__ import annotations

import numpy as np

from models.histories import Interactions, trail_of
from models.neighbours import neighbours_of

ITEMS, RIDGE = 7, 2.0


def interactions(taken: np.ndarray) -> Interactions:
    """Each user took their items in baskets of one, some twice."""
    users = {
        str(user): trail_of((float(at), {item: np.nan}) for at, item in enumerate(2 * np.flatnonzero(row).tolist()))
        for user, row in enumerate(taken)
    }
    return Interactions("purchase", tuple(map(str, range(ITEMS))), ("",) * ITEMS, users)


def test_weights_for_an_item_are_the_ridge_regression_of_it_on_the_others() -> None:
    taken = np.random.default_rng(0).random((30, ITEMS)) < 0.4
    taken[:, 0] |= ~taken.any(axis=1)
    numbers, weights = neighbours_of(interactions(taken), RIDGE)
    dense = np.zeros((ITEMS, ITEMS))
    np.put_along_axis(dense, numbers, weights, axis=1)
    for item in range(ITEMS):
        others = np.delete(np.arange(ITEMS), item)
        x, y = taken[:, others].astype(float), taken[:, item].astype(float)
        expected = np.linalg.solve(x.T @ x + RIDGE * np.eye(ITEMS - 1), x.T @ y)
        np.testing.assert_allclose(dense[others, item], expected, atol=1e-5)
        assert dense[item, item] == 0


def test_largest_weights_are_kept() -> None:
    taken = np.random.default_rng(1).random((40, ITEMS)) < 0.5
    taken[:, 0] |= ~taken.any(axis=1)
    _, weights = neighbours_of(interactions(taken), RIDGE)
    assert (np.diff(np.abs(weights), axis=1) <= 0).all()
