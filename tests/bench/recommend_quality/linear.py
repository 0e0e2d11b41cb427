"""Linear models of items in closed form: what stands beside what a user has, and what follows it."""

from __future__ import annotations

import numpy as np

from models.data.interactions import Split
from models.evaluation.ranking_metrics import sort_by_score
from models.training.item_neighbours import NeighbourConfig, fit_item_weights, second_moments
from tests.bench.recommend_quality.simple import Rankings


def linear(split: Split, **setting: float) -> Rankings:
    """By all weights of `models.neighbours` alone, with its schedule's fields: EASE (Steck 2019) where nothing but
    `ridge` is named, SLIT where `after` is 1, and between SLIST (both Choi et al. 2021).

    SLIT's items speak of themselves too, as its authors have it: a film that was rated does not come again.
    """
    items = len(split.training.ids)
    schedule = NeighbourConfig(weight=1.0, kept=items, **setting)
    last = np.zeros((len(split.users), items))
    for row, trail in zip(last, split.histories, strict=True):
        np.maximum.at(row, trail.items, schedule.recency_decay ** np.arange(len(trail) - 1, -1, -1))
    trails = split.training.users.values()
    alone = schedule.after == 1
    weights = (
        np.linalg.solve(*second_moments(trails, items, schedule))
        if alone
        else fit_item_weights(trails, items, schedule)
    )
    return sort_by_score((last @ weights).astype(np.float32))
