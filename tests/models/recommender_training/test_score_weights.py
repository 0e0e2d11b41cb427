"""The weights of a score's components are chosen on baskets that the network was not trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.data.interactions import Interactions, Split, hold_out_last, make_sequence
from models.networks.recommender import ScoreWeights
from models.recommender_training.history_network import HistoryConfig, score_histories, train_history_network
from models.recommender_training.item_neighbours import NeighbourConfig
from models.recommender_training.score_weights import (
    choose_score_weights,
    score_components,
    score_weight_grid,
    search_score_weights,
)

pytestmark = pytest.mark.slow

ITEMS = 12
TEXTS = np.eye(ITEMS, 8, dtype=np.float32) + 0.1
HISTORY_CONFIG = HistoryConfig(
    seed=0, epochs=2, batch_examples=4, events=8, rate=1e-2, weight_decay=0.0, dropout=0.0, id_dropout=0.0, halves=0.0,
    often=1.5, neighbours=NeighbourConfig(weight=2.0, ridge=1.0, kept=ITEMS), steps_of_user=4, choose_scales=True,
    inner=8, layers=1, heads=2, eyes=2, eye=4,
)  # fmt: skip


@pytest.fixture
def interactions() -> Interactions:
    rng = np.random.default_rng(0)
    users = {
        f"u{user}": make_sequence((float(day), {int(item): np.nan}) for day, item in enumerate(rng.choice(ITEMS, 6)))
        for user in range(20)
    }
    return Interactions("purchase", tuple(map(str, range(ITEMS))), tuple(map(str, range(ITEMS))), users)


def perfect_scores(split: Split, strength: float) -> np.ndarray:
    """Return scores (users, items) that put each user's target first."""
    scores = np.zeros((len(split.users), ITEMS), np.float32)
    for row, items in zip(scores, split.targets, strict=True):
        row[items] = strength
    return scores


def noise(split: Split) -> np.ndarray:
    return np.random.default_rng(1).random((len(split.users), ITEMS)).astype(np.float32)


@pytest.mark.parametrize("harmful", ["attention", "neighbours", "often"])
def test_a_harmful_component_gets_a_small_weight(interactions: Interactions, harmful: str) -> None:
    split = hold_out_last(interactions)
    components = {name: perfect_scores(split, 0.5) for name in ("attention", "neighbours", "often")} | {
        harmful: noise(split) * 3
    }
    weights = search_score_weights(components, split)
    assert getattr(weights, harmful) < 0.6
    assert max(weights.attention, weights.neighbours) == 1


def test_weights_without_a_gain_stay_at_one(interactions: Interactions) -> None:
    split = hold_out_last(interactions)
    assert (
        search_score_weights({name: perfect_scores(split, 1) for name in ("attention", "neighbours", "often")}, split)
        == ScoreWeights()
    )


def test_no_component_ever_gets_a_weight_of_zero() -> None:
    grid = list(score_weight_grid())
    assert len(set(grid)) == len(grid)
    assert min(min(weights.attention, weights.neighbours, weights.often) for weights in grid) > 0


def test_a_scaled_network_gives_the_weighted_sum_of_its_components(interactions: Interactions) -> None:
    split = hold_out_last(interactions)
    network = train_history_network(split.training, TEXTS, HISTORY_CONFIG, lambda line: None)
    components = score_components(network, TEXTS, split, HISTORY_CONFIG)
    assert all(np.ptp(component) > 0.1 for component in components.values())
    np.testing.assert_allclose(
        sum(components.values()), score_histories(network, TEXTS, split, HISTORY_CONFIG), atol=1e-5
    )
    scales = ScoreWeights(attention=0.25, neighbours=0.5, often=4.0)
    scaled = train_history_network(split.training, TEXTS, replace(HISTORY_CONFIG, scales=scales), lambda line: None)
    expected = 0.25 * components["attention"] + 0.5 * components["neighbours"] + 4 * components["often"]
    np.testing.assert_allclose(score_histories(scaled, TEXTS, split, HISTORY_CONFIG), expected, atol=1e-5)


def test_the_chosen_weights_are_the_best_for_a_network_without_the_last_baskets(interactions: Interactions) -> None:
    logged: list[str] = []
    chosen = choose_score_weights(
        interactions, TEXTS, replace(HISTORY_CONFIG, scales=ScoreWeights(often=3.0)), logged.append
    )
    split = hold_out_last(interactions)
    network = train_history_network(split.training, TEXTS, HISTORY_CONFIG, lambda line: None)
    assert chosen == replace(
        HISTORY_CONFIG, scales=search_score_weights(score_components(network, TEXTS, split, HISTORY_CONFIG), split)
    )
    assert chosen.scales != ScoreWeights()
    assert str(chosen.scales) in logged[-1]


def test_no_network_is_trained_if_weights_are_not_to_be_chosen(interactions: Interactions) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    config = replace(HISTORY_CONFIG, choose_scales=False, scales=ScoreWeights(often=3.0))
    assert choose_score_weights(interactions, TEXTS, config, pytest.fail) is config
    assert torch.get_rng_state().equal(before)
