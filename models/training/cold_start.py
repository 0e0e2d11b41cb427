"""Finding what newcomers are told (`models.ranking.cold_start`): on items held back from a training of their own.

A network is trained without some of the items and without each user's last basket, and the three numbers are those
with the greatest likelihood of these baskets under the softmax over all items: so newcomers have the share of what is
taken next that is theirs, whatever the seed of a training makes of texts that it never saw. Knows torch; nothing of
bundles.
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
from models.training.history_network import HistoryConfig, cold_start_scores, scores_of, train_history_network

Array = NDArray[np.float32]


def fit_cold_start(
    interactions: Interactions, texts: Array, config: HistoryConfig, held_back: Items, say: Callable[[str], None]
) -> HistoryConfig:
    """The schedule with what its newcomers are told, if it wants that found; other arguments as of `train_histories`.

    `held_back` are items that the encoder was not taught beside others, if there are such: as newcomers will be.

    Nothing is found for a network without ids or texts: there nobody is known, or like anybody.
    """
    if not (config.find_newcomers and config.use_ids and config.use_text):
        return config
    held = hold_out_last(interactions)
    training = remove_items(held, held_back).training
    split = replace(held.where([user in training.users for user in held.users]), training=training)
    kin_alone, taken_alone = (
        ColdStartWeights(bias=0, neighbours=1, taken=0),
        ColdStartWeights(bias=0, neighbours=0, taken=1),
    )
    network = train_history_network(training, texts, replace(config, newcomers=kin_alone), say)
    there = np.unique(np.concatenate([trail.items for trail in interactions.users.values()]))
    new = np.intersect1d(held_back, there)  # what nobody takes even at last cannot be asked for
    said, taken = (cold_start_scores(network, split, new, worth) for worth in (kin_alone, taken_alone))
    scores = scores_of(network, texts, split, config)
    scores[:, np.setdiff1d(held_back, there)] = -np.inf
    worth = maximum_likelihood_weights(scores, new, said, taken, split)
    say(f"told newcomers, by the last baskets of {len(split.users)} users: {worth}")
    return replace(config, newcomers=worth)


def maximum_likelihood_weights(scores: Array, new: Items, said: Array, taken: Array, split: Split) -> ColdStartWeights:
    """By the mean log likelihood of each user's targets, each a like part; scores (users, items) without what the items
    `new` are told, `said` and `taken` (users, new) what one part of each would be."""
    wanted = np.zeros_like(scores)
    for row, targets in zip(wanted, split.targets, strict=True):
        row[targets] = 1 / len(targets)
    parts = np.stack([np.ones_like(said), said, taken])
    others, own, asked = logsumexp(np.delete(scores, new, axis=1), axis=1), scores[:, new], wanted[:, new]

    def loss(worth: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        found = own + np.tensordot(worth, parts, axes=1)
        total = np.logaddexp(others, logsumexp(found, axis=1))
        missing = asked - np.exp(found - total[:, None])
        gradient = np.tensordot(parts, missing, axes=2) / len(own)
        return float((total - (asked * found).sum(axis=1)).mean()), -gradient

    always, by_kin, by_taken = minimize(loss, np.asarray([0.0, 1.0, 0.0]), jac=True, method="BFGS").x.tolist()
    return ColdStartWeights(bias=always, neighbours=by_kin, taken=by_taken)
