"""The rows of Heed: the shipped bundle, and networks trained on the split of a study."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.data.interactions import Interactions, Items, Split
from models.evaluation.ranking_metrics import sort_by_score
from models.evaluation.recommendation import measure_recommender
from models.networks.recommender import HistoryNetwork
from models.ranking.bundle_files import load_own_catalogue, load_recommender
from models.recommender_training.cold_start import fit_cold_start
from models.recommender_training.history_network import (
    HistoryConfig,
    cold_start_scores,
    score_histories,
    train_history_network,
)
from models.recommender_training.score_weights import choose_score_weights
from tests.bench.recommend_quality.methods import Method, as_rank
from tests.bench.recommend_quality.simple import Rankings
from tests.bench.recommend_quality.study import Row, Views

HEED = "Heed"
NO_ITEMS: Items = np.zeros(0, np.int64)

ABLATIONS = {
    "no text": {"use_text": False},
    "no ids": {"use_ids": False},
    "no time": {"use_time": False},
    "no candidate-aware attention": {"use_candidates": False},
}


def measure_shipped(bundle: Bundle, split: Split) -> Row:
    """Measure the shipped bundle. It must not have been trained on more than the training data of the split."""
    report = measure_recommender(load_recommender(bundle), load_own_catalogue(bundle)[2], split)
    return Row("Heed, as it serves", Views(report.every, report.again, report.new), {}, {}, 1)


class TrainedHeed:
    """The history network, trained on the split that it ranks. The last network is cached.

    `texts` (items, width) are centred. `cold` are cold items, and `held_back` are the items that fit their weights.
    """

    def __init__(
        self,
        texts: NDArray[np.float32],
        config: HistoryConfig,
        cold: Items = NO_ITEMS,
        held_back: Items = NO_ITEMS,
    ) -> None:
        self._texts, self._config, self._cold, self._held_back = texts, config, cold, held_back
        self._cached: tuple[Interactions, HistoryConfig, HistoryNetwork] | None = None

    def rank(self, split: Split) -> Rankings:
        training, texts = split.training, self._texts
        if self._cached is None or self._cached[0] is not training:
            config = choose_score_weights(training, texts, self._config, print)
            config = fit_cold_start(training, texts, config, self._held_back, print)
            self._cached = training, config, train_history_network(training, texts, config, print)
        _, config, network = self._cached
        scores = score_histories(network, texts, split, config)
        if len(self._cold):
            scores[:, self._cold] += cold_start_scores(network, split, self._cold)
        return sort_by_score(scores)


def heed_method(name: str, heed: TrainedHeed) -> Method:
    return Method(name, as_rank(heed.rank))


def ablations(texts: NDArray[np.float32], config: HistoryConfig) -> Iterator[Method]:
    for name, change in ABLATIONS.items():
        ablated = replace(config, **change)  # type: ignore[arg-type]
        yield heed_method(f"Heed, {name}", TrainedHeed(texts, ablated))
