"""Heed is trained once on the split that it ranks, with the configuration of its part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.data.interactions import Split, remove_items
from models.ranking.cold_start import ColdStartWeights
from models.recommender_training.history_network import HistoryConfig
from models.recommender_training.item_neighbours import NeighbourConfig
from tests.bench.recommend_quality.__main__ import ON_MOVIELENS, config_of
from tests.bench.recommend_quality.heed import ABLATIONS, TrainedHeed, ablations, heed_method
from tests.support.tiny_baskets import ITEMS


def test_heed_is_trained_on_the_split_that_it_ranks(split: Split) -> None:
    texts = np.eye(ITEMS, 8, dtype=np.float32)
    config = HistoryConfig(
        seed=0, epochs=1, batch_examples=2, events=8, rate=1e-3, weight_decay=0.0, dropout=0.0, id_dropout=0.5,
        halves=0.5, often=1.0, neighbours=NeighbourConfig(weight=1.0, ridge=1.0, kept=3), steps_of_user=2, inner=8,
        layers=1, heads=2, eyes=2, eye=4,
    )  # fmt: skip
    heed = TrainedHeed(texts, config)
    methods = [heed_method("Heed", heed), *ablations(texts, config)]
    assert [method.name for method in methods][1:] == [f"Heed, {name}" for name in ABLATIONS]
    for method in methods:
        ((_, rankings),) = method.rank(split, {})
        assert np.sort(rankings, axis=1).tolist() == [list(range(ITEMS))] * 2


def test_epochs_can_be_set_and_cold_items_are_fitted_only_with_removed_items() -> None:
    assert config_of("movielens", None).epochs == ON_MOVIELENS["epochs"]
    assert config_of("retail", None).epochs > 1
    for part in ("retail", "movielens", "removed"):
        config = config_of(part, 1)
        assert config.epochs == 1
        assert config.find_newcomers == (part == "removed")


def test_a_network_is_trained_once_and_scores_cold_items(split: Split) -> None:
    texts = np.eye(ITEMS, 8, dtype=np.float32)
    removed = remove_items(split, np.asarray([3]))
    config = HistoryConfig(
        seed=0, epochs=1, batch_examples=2, events=8, rate=1e-3, weight_decay=0.0, dropout=0.0, id_dropout=0.5,
        halves=0.0, often=1.0, neighbours=NeighbourConfig(weight=1.0, ridge=1.0, kept=3), steps_of_user=2, inner=8,
        layers=1, heads=2, eyes=2, eye=4, newcomers=ColdStartWeights(bias=50.0, neighbours=0.0, taken=0.0),
    )  # fmt: skip
    heed = TrainedHeed(texts, config, cold=np.asarray([3]))
    first = heed.rank(removed)
    assert (first[:, 0] == 3).all()
    assert (TrainedHeed(texts, config).rank(removed)[:, 0] != 3).all()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("tests.bench.recommend_quality.heed.train_history_network", None)
        assert (heed.rank(replace(removed, targets=removed.targets[::-1])) == first).all()
