"""Fits the cold-start weights (`models.ranking.cold_start`) on items held out from a separate training.

A network is trained without some of the items and without each user's last basket. The weights have the greatest
likelihood of these baskets under the softmax over all items. So cold items get their share of the next purchases,
whatever scores a network happens to give to texts that it never saw. This module knows torch and no bundles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from models.data.interactions import Interactions, Items, Split, hold_out_last, remove_items
from models.ranking.cold_start import ColdStartWeights
from models.recommender_training.history_network import (
    HistoryConfig,
    cold_start_scores,
    score_histories,
    train_history_network,
)

Array = NDArray[np.float32]


def fit_cold_start(
    interactions: Interactions, texts: Array, config: HistoryConfig, held_out: Items, log: Callable[[str], None]
) -> HistoryConfig:
    """Return the configuration with fitted cold-start weights, or unchanged if it does not ask for them.

    `held_out` are items without co-occurrences in the encoder's training, as cold items will be. The other arguments
    are those of `train_history_network`. Nothing is fitted for a network without IDs, where no item is known, or
    without texts, where no item is similar to another.
    """
    if not (config.find_newcomers and config.use_ids and config.use_text):
        return config
    last = hold_out_last(interactions)
    training = remove_items(last, held_out).training
    split = replace(last.select_users([user in training.users for user in last.users]), training=training)
    neighbours_alone, taken_alone = (
        ColdStartWeights(bias=0, neighbours=1, taken=0),
        ColdStartWeights(bias=0, neighbours=0, taken=1),
    )
    network = train_history_network(training, texts, replace(config, newcomers=neighbours_alone), log)
    all_taken = np.unique(np.concatenate([sequence.items for sequence in interactions.users.values()]))
    cold = np.intersect1d(held_out, all_taken)  # an item that nobody ever takes cannot be a target
    neighbours, taken = (cold_start_scores(network, split, cold, unit) for unit in (neighbours_alone, taken_alone))
    scores = score_histories(network, texts, split, config)
    scores[:, np.setdiff1d(held_out, all_taken)] = -np.inf
    weights = maximum_likelihood_weights(scores, cold, neighbours, taken, split)
    log(f"cold-start weights, fitted on the last baskets of {len(split.users)} users: {weights}")
    return replace(config, newcomers=weights)


def maximum_likelihood_weights(
    scores: Array, cold: Items, neighbours: Array, taken: Array, split: Split
) -> ColdStartWeights:
    """Return the weights with the greatest mean log likelihood of the users' targets.

    Each target of a user has an equal share. `scores` (users, items) lack the cold-start scores of the items `cold`.
    `neighbours` and `taken` (users, cold) are these scores for a weight of 1.
    """
    targets = np.zeros_like(scores)
    for row, items in zip(targets, split.targets, strict=True):
        row[items] = 1 / len(items)
    terms = np.stack([np.ones_like(neighbours), neighbours, taken])
    warm_total = logsumexp(np.delete(scores, cold, axis=1), axis=1)
    cold_scores, cold_targets = scores[:, cold], targets[:, cold]

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        adjusted = cold_scores + np.tensordot(weights, terms, axes=1)
        total = np.logaddexp(warm_total, logsumexp(adjusted, axis=1))
        residuals = cold_targets - np.exp(adjusted - total[:, None])
        gradient = np.tensordot(terms, residuals, axes=2) / len(cold_scores)
        return float((total - (cold_targets * adjusted).sum(axis=1)).mean()), -gradient

    solution = minimize(loss, np.asarray([0.0, 1.0, 0.0]), jac=True, method="BFGS").x.tolist()
    bias, neighbour_weight, taken_weight = solution
    return ColdStartWeights(bias=bias, neighbours=neighbour_weight, taken=taken_weight)
