"""Linear models of items in closed form: what stands beside what a user has, and what follows it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from models.histories import Items, Split
from models.neighbours import having, item_weights
from models.ranked_metrics import best_first
from tests.bench.recommend_quality.simple import Rankings, Scores


def ease(split: Split, ridge: float) -> Rankings:
    """EASE (Steck 2019): each item that a user has, told from the others by ridge regression."""
    items, users = len(split.training.ids), split.training.users
    owned = {user: np.unique(trail.items) for user, trail in users.items()}
    weights = item_weights(list(owned.values()), items, ridge)
    return best_first((having([owned[user] for user in split.users], items) @ weights).astype(np.float32))


def transitions(split: Split, ridge: float, past: float, ahead: float, asked: float) -> Rankings:
    """SLIT (Choi et al. 2021): what comes after each event, told from what came up to it by ridge regression.

    An event counts exp(-1 / `past`) for each one after it, what comes exp(-1 / `ahead`) for each one before it, and
    when the fitted model is asked, a history's events exp(-1 / `asked`).
    """
    items = len(split.training.ids)
    gram, told = np.zeros((items, items), np.float32), np.zeros((items, items), np.float32)
    for trail in split.training.users.values():
        before = faded(trail.items, items, past)[:-1]
        after = faded(trail.items[::-1], items, ahead)[::-1][1:]
        gram += before.T @ before
        told += before.T @ (after / after.sum(axis=1, keepdims=True))
    weights = np.linalg.solve(gram + ridge * np.eye(items, dtype=np.float32), told)
    last = np.stack([faded(trail.items, items, asked)[-1] for trail in split.histories])
    return best_first(last @ weights)


def faded(events: Items, items: int, scale: float) -> Scores:
    """(events, items): after each event, what came up to it, each less by exp(-1 / scale) for every one after it."""
    found = np.zeros((len(events), items), np.float32)
    found[np.arange(len(events)), events] = 1
    for earlier, later in pairwise(found):
        later += earlier * np.float32(np.exp(-1 / scale))
    return found
