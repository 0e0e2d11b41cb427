"""Linear item models in closed form: co-occurrence with the items of a user, and transitions from them."""

from __future__ import annotations

import numpy as np

from models.data.interactions import Split
from models.evaluation.ranking_metrics import sort_by_score
from models.recommender_training.item_neighbours import NeighbourConfig, fit_item_weights, second_moments
from tests.bench.recommend_quality.simple import Rankings


def linear(split: Split, **setting: float) -> Rankings:
    """Rank by all weights of `models.recommender_training.item_neighbours`, with the settings of its configuration.

    The model is EASE (Steck 2019) if only `ridge` is set, SLIT if `after` is 1, and SLIST between (Choi et al. 2021).
    As in the paper, SLIT's items have weights for themselves, because a rated film is not rated again.
    """
    items = len(split.training.ids)
    config = NeighbourConfig(weight=1.0, kept=items, **setting)
    last = np.zeros((len(split.users), items))
    for row, sequence in zip(last, split.histories, strict=True):
        np.maximum.at(row, sequence.items, config.recency_decay ** np.arange(len(sequence) - 1, -1, -1))
    sequences = split.training.users.values()
    is_slit = config.after == 1
    weights = (
        np.linalg.solve(*second_moments(sequences, items, config))
        if is_slit
        else fit_item_weights(sequences, items, config)
    )
    return sort_by_score((last @ weights).astype(np.float32))
