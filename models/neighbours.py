"""Which items are taken by the same users: each item's weights for others, in closed form (EASE, Steck 2019, eq. 8).

B = -P / diag(P) off the diagonal, with P the inverse of XᵀX + ridge · I and X (users, items) who took what: the linear
model without an item's weight for itself that best tells a user's items from the user's others. Attention over events
learns from what came next; this learns from all pairs of a user's items at once, and knows best what is new to a user.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from models.histories import Interactions, Items

NEIGHBOURS = 32
"""Kept of an item's weights, the largest in amount; all of them are no better on Online Retail."""


def neighbours_of(interactions: Interactions, ridge: float) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Numbers of the items for which each item speaks most, or against which, and its weights; (items, NEIGHBOURS)."""
    weights = item_weights(
        [np.unique(trail.items) for trail in interactions.users.values()], len(interactions.ids), ridge
    )
    kept = np.argsort(-np.abs(weights), axis=1)[:, :NEIGHBOURS]
    return kept.astype(np.int32), np.take_along_axis(weights, kept, axis=1).astype(np.float32)


def item_weights(owned: Sequence[Items], items: int, ridge: float) -> NDArray[np.float64]:
    """B (items, items), by the distinct items of each user."""
    taken = having(owned, items)
    inverse = np.linalg.inv((taken.T @ taken).toarray() + ridge * np.eye(items))
    weights: NDArray[np.float64] = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def having(owned: Sequence[Items], items: int) -> csr_matrix:
    """(users, items): 1 for the distinct items of each user."""
    rows = np.repeat(np.arange(len(owned)), [len(own) for own in owned])
    return csr_matrix((np.ones(len(rows)), (rows, np.concatenate(owned))), (len(owned), items))
