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
from models.evaluation.ranking_metrics import best_first, measure
from models.networks.recommender import AS_TRAINED, HistoryNetwork, Scales
from models.training.history_network import HistorySchedule, scores_of, train_histories

RATIOS = tuple(2.0**power for power in range(-6, 7))
"""Of attention to neighbours. The lesser is never nothing: an item that nobody took yet is known to attention alone."""

OFTEN = tuple(2.0**power for power in range(-2, 3))


def with_scales(
    interactions: Interactions, texts: NDArray[np.float32], config: HistorySchedule, say: Callable[[str], None]
) -> HistorySchedule:
    """The schedule with the scales chosen for it, if it wants them chosen; arguments as of `train_histories`."""
    if not config.choose_scales:
        return config
    split = hold_out_last(interactions)
    network = train_histories(split.training, texts, replace(config, scales=AS_TRAINED), say)
    scales = best_scales(parts_of(network, texts, split, config), split)
    say(f"chosen on the last basket of {len(split.users)} users: {scales}")
    return replace(config, scales=scales)


def parts_of(
    network: HistoryNetwork, texts: NDArray[np.float32], split: Split, config: HistorySchedule
) -> dict[str, NDArray[np.float32]]:
    """What each part that `Scales` names adds to the scores of the split's users, (users, items)."""
    found = {}
    for name in names():
        alone = deepcopy(network)
        alone.rescale(Scales(**{other: float(other == name) for other in names()}))
        found[name] = scores_of(alone, texts, split, config)
    return found


def best_scales(parts: dict[str, NDArray[np.float32]], split: Split) -> Scales:
    """By NDCG@10 of all targets among all items; of equally good ones those that change least."""

    def ndcg(scales: Scales) -> float:
        summed = sum(getattr(scales, name) * part for name, part in parts.items())
        return measure(best_first(np.asarray(summed)), split.targets, len(split.training.ids)).ndcg

    return max(every_scale(), key=ndcg)


def every_scale() -> Iterator[Scales]:
    """Those that change least come first."""
    near_one = [sorted(values, key=lambda value: abs(np.log(value))) for values in (OFTEN, RATIOS)]
    for often, ratio in product(*near_one):
        yield Scales(attention=min(ratio, 1.0), neighbours=min(1 / ratio, 1.0), often=often)


def names() -> list[str]:
    return [field.name for field in fields(Scales)]
