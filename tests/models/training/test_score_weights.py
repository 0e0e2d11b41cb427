"""What a score's parts count beside each other is chosen on baskets that the network was not trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.data.interactions import Interactions, Split, hold_out_last, make_sequence
from models.networks.recommender import ScoreWeights
from models.training.history_network import HistoryConfig, score_histories, train_history_network
from models.training.item_neighbours import NeighbourConfig
from models.training.score_weights import (
    choose_score_weights,
    score_components,
    score_weight_grid,
    search_score_weights,
)

ITEMS = 12
TEXTS = np.eye(ITEMS, 8, dtype=np.float32) + 0.1
SCHEDULE = HistoryConfig(
    seed=0, epochs=2, batch_examples=4, events=8, rate=1e-2, weight_decay=0.0, dropout=0.0, id_dropout=0.0, halves=0.0,
    often=1.5, neighbours=NeighbourConfig(weight=2.0, ridge=1.0, kept=ITEMS), steps_of_user=4, choose_scales=True,
    inner=8, layers=1, heads=2, eyes=2, eye=4,
)  # fmt: skip


@pytest.fixture
def interactions() -> Interactions:
    chance = np.random.default_rng(0)
    users = {
        f"u{user}": make_sequence((float(day), {int(item): np.nan}) for day, item in enumerate(chance.choice(ITEMS, 6)))
        for user in range(20)
    }
    return Interactions("purchase", tuple(map(str, range(ITEMS))), tuple(map(str, range(ITEMS))), users)


def telling(split: Split, strength: float) -> np.ndarray:
    """Scores (users, items) that put each user's target first."""
    found = np.zeros((len(split.users), ITEMS), np.float32)
    for row, own in zip(found, split.targets, strict=True):
        row[own] = strength
    return found


def noise(split: Split) -> np.ndarray:
    return np.random.default_rng(1).random((len(split.users), ITEMS)).astype(np.float32)


@pytest.mark.parametrize("harmful", ["attention", "neighbours", "often"])
def test_a_part_that_harms_counts_so_little_that_the_others_decide(interactions: Interactions, harmful: str) -> None:
    split = hold_out_last(interactions)
    parts = {name: telling(split, 0.5) for name in ("attention", "neighbours", "often")} | {harmful: noise(split) * 3}
    found = search_score_weights(parts, split)
    assert getattr(found, harmful) < 0.6
    assert max(found.attention, found.neighbours) == 1


def test_nothing_is_changed_where_it_gains_nothing(interactions: Interactions) -> None:
    split = hold_out_last(interactions)
    assert (
        search_score_weights({name: telling(split, 1) for name in ("attention", "neighbours", "often")}, split)
        == ScoreWeights()
    )


def test_no_part_is_ever_left_out_for_an_item_may_be_known_to_one_alone() -> None:
    every = list(score_weight_grid())
    assert len(set(every)) == len(every)
    assert min(min(one.attention, one.neighbours, one.often) for one in every) > 0


def test_a_rescaled_network_scores_by_its_parts_multiplied(interactions: Interactions) -> None:
    split = hold_out_last(interactions)
    network = train_history_network(split.training, TEXTS, SCHEDULE, lambda line: None)
    parts = score_components(network, TEXTS, split, SCHEDULE)
    assert all(np.ptp(part) > 0.1 for part in parts.values())
    np.testing.assert_allclose(sum(parts.values()), score_histories(network, TEXTS, split, SCHEDULE), atol=1e-5)
    scales = ScoreWeights(attention=0.25, neighbours=0.5, often=4.0)
    again = train_history_network(split.training, TEXTS, replace(SCHEDULE, scales=scales), lambda line: None)
    expected = 0.25 * parts["attention"] + 0.5 * parts["neighbours"] + 4 * parts["often"]
    np.testing.assert_allclose(score_histories(again, TEXTS, split, SCHEDULE), expected, atol=1e-5)


def test_scales_are_those_that_are_best_for_a_network_without_the_last_baskets(interactions: Interactions) -> None:
    said: list[str] = []
    found = choose_score_weights(interactions, TEXTS, replace(SCHEDULE, scales=ScoreWeights(often=3.0)), said.append)
    split = hold_out_last(interactions)
    network = train_history_network(split.training, TEXTS, SCHEDULE, lambda line: None)
    assert found == replace(
        SCHEDULE, scales=search_score_weights(score_components(network, TEXTS, split, SCHEDULE), split)
    )
    assert found.scales != ScoreWeights()
    assert str(found.scales) in said[-1]


def test_nothing_is_trained_to_choose_what_is_not_to_be_chosen(interactions: Interactions) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    kept = replace(SCHEDULE, choose_scales=False, scales=ScoreWeights(often=3.0))
    assert choose_score_weights(interactions, TEXTS, kept, pytest.fail) is kept
    assert torch.get_rng_state().equal(before)
