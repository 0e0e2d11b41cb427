"""Chooses the weights of a score's components on baskets that the network was not trained on.

Attention is trained with the loss of whole rankings, on the users that it will serve. With few users it overfits them,
and its component harms the first ten items more than it helps. So a network is trained without each user's last basket,
and its components are multiplied by weights from a grid. The weights with the best NDCG@10 on those baskets are used
for the network that is trained on all baskets. This module knows torch and no bundles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import fields, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from models.data.interactions import Interactions, Split, hold_out_last
from models.evaluation.ranking_metrics import measure_rankings, sort_by_score
from models.networks.recommender import AS_TRAINED, HistoryNetwork, ScoreWeights
from models.recommender_training.history_network import HistoryConfig, score_histories, train_history_network

RATIOS = tuple(2.0**power for power in range(-6, 7))
"""Weights of attention relative to neighbours.

Neither is ever zero, because only attention can score an item that nobody took.
"""

OFTEN = tuple(2.0**power for power in range(-2, 3))
"""Factors of the weight of how often the user took an item."""


def choose_score_weights(
    interactions: Interactions, texts: NDArray[np.float32], config: HistoryConfig, log: Callable[[str], None]
) -> HistoryConfig:
    """Return the configuration with the chosen weights, or unchanged if it does not ask for them.

    The arguments are those of `train_history_network`.
    """
    if not config.choose_scales:
        return config
    split = hold_out_last(interactions)
    network = train_history_network(split.training, texts, replace(config, scales=AS_TRAINED), log)
    scales = search_score_weights(score_components(network, texts, split, config), split)
    log(f"score weights, chosen on the last baskets of {len(split.users)} users: {scales}")
    return replace(config, scales=scales)


def score_components(
    network: HistoryNetwork, texts: NDArray[np.float32], split: Split, config: HistoryConfig
) -> dict[str, NDArray[np.float32]]:
    """Return the part of the scores of the split's users (users, items) that each field of `ScoreWeights` scales."""
    components = {}
    for name in component_names():
        isolated = deepcopy(network)
        isolated.scale_components(ScoreWeights(**{other: float(other == name) for other in component_names()}))
        components[name] = score_histories(isolated, texts, split, config)
    return components


def search_score_weights(components: dict[str, NDArray[np.float32]], split: Split) -> ScoreWeights:
    """Return the weights of the grid with the best NDCG@10. Ties go to the weights closest to 1."""

    def ndcg(scales: ScoreWeights) -> float:
        scores = sum(getattr(scales, name) * component for name, component in components.items())
        return measure_rankings(sort_by_score(np.asarray(scores)), split.targets, len(split.training.ids)).ndcg

    return max(score_weight_grid(), key=ndcg)


def score_weight_grid() -> Iterator[ScoreWeights]:
    """Yield the weights to try, the closest to 1 first."""
    near_one = [sorted(values, key=lambda value: abs(np.log(value))) for values in (OFTEN, RATIOS)]
    for often, ratio in product(*near_one):
        yield ScoreWeights(attention=min(ratio, 1.0), neighbours=min(1 / ratio, 1.0), often=often)


def component_names() -> list[str]:
    return [field.name for field in fields(ScoreWeights)]
