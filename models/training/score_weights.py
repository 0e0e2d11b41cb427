"""What the parts of a score count beside each other, chosen where nobody was asked in training.

Attention is taught by the loss of whole rankings, on the same users as it is asked for; where they are few it knows
them too well, and its part harms the first ten more than it helps. So the network is trained once without each user's
last basket, its parts are multiplied, and the multiples with the best NDCG@10 on those baskets are those with which a
network of all baskets serves. Knows torch; nothing of bundles.
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
from models.training.history_network import HistoryConfig, scores_of, train_history_network

RATIOS = tuple(2.0**power for power in range(-6, 7))
"""Of attention to neighbours. The lesser is never nothing: an item that nobody took yet is known to attention alone."""

OFTEN = tuple(2.0**power for power in range(-2, 3))


def choose_score_weights(
    interactions: Interactions, texts: NDArray[np.float32], config: HistoryConfig, say: Callable[[str], None]
) -> HistoryConfig:
    """The schedule with the scales chosen for it, if it wants them chosen; arguments as of `train_histories`."""
    if not config.choose_scales:
        return config
    split = hold_out_last(interactions)
    network = train_history_network(split.training, texts, replace(config, scales=AS_TRAINED), say)
    scales = search_score_weights(score_components(network, texts, split, config), split)
    say(f"chosen on the last basket of {len(split.users)} users: {scales}")
    return replace(config, scales=scales)


def score_components(
    network: HistoryNetwork, texts: NDArray[np.float32], split: Split, config: HistoryConfig
) -> dict[str, NDArray[np.float32]]:
    """What each part that `Scales` names adds to the scores of the split's users, (users, items)."""
    found = {}
    for name in names():
        alone = deepcopy(network)
        alone.scale_components(ScoreWeights(**{other: float(other == name) for other in names()}))
        found[name] = scores_of(alone, texts, split, config)
    return found


def search_score_weights(parts: dict[str, NDArray[np.float32]], split: Split) -> ScoreWeights:
    """By NDCG@10 of all targets among all items; of equally good ones those that change least."""

    def ndcg(scales: ScoreWeights) -> float:
        summed = sum(getattr(scales, name) * part for name, part in parts.items())
        return measure_rankings(sort_by_score(np.asarray(summed)), split.targets, len(split.training.ids)).ndcg

    return max(score_weight_grid(), key=ndcg)


def score_weight_grid() -> Iterator[ScoreWeights]:
    """Those that change least come first."""
    near_one = [sorted(values, key=lambda value: abs(np.log(value))) for values in (OFTEN, RATIOS)]
    for often, ratio in product(*near_one):
        yield ScoreWeights(attention=min(ratio, 1.0), neighbours=min(1 / ratio, 1.0), often=often)


def names() -> list[str]:
    return [field.name for field in fields(ScoreWeights)]
