"""Linear models of items in closed form: what stands beside what a user has, and what follows it."""

from __future__ import annotations

import numpy as np

from models.histories import Split
from models.neighbours import NeighbourSchedule, around, faded, item_weights
from models.ranked_metrics import best_first
from tests.bench.recommend_quality.simple import Rankings


def ease(split: Split, ridge: float) -> Rankings:
    """EASE (Steck 2019): each item that a user has, told from the others by ridge regression."""
    items = len(split.training.ids)
    schedule = NeighbourSchedule(weight=1.0, ridge=ridge, kept=items)
    weights = item_weights(split.training.users.values(), items, schedule)
    having = np.zeros((len(split.users), items))
    for row, own in zip(having, split.owned, strict=True):
        row[own] = 1
    return best_first((having @ weights).astype(np.float32))


def transitions(split: Split, ridge: float, past: float, ahead: float, asked: float) -> Rankings:
    """SLIT (Choi et al. 2021): what comes after each event, told from what came up to it by ridge regression.

    `past` and `ahead` as for `around`; when the fitted model is asked, a history's events count exp(-1 / `asked`) for
    each one after them.
    """
    items = len(split.training.ids)
    gram, told = ridge * np.eye(items), np.zeros((items, items))
    for trail in split.training.users.values():
        own, places = np.unique(trail.items, return_inverse=True)
        before, coming = around(places, len(own), past, ahead)
        block = np.ix_(own, own)
        gram[block] += before.T @ before
        told[block] += before.T @ coming
    last = np.stack([faded(trail.items, items, asked)[-1] for trail in split.histories])
    return best_first((last @ np.linalg.solve(gram, told)).astype(np.float32))
