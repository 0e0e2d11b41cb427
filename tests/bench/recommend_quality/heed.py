"""Heed's own rows: the shipped bundle as it serves, and networks trained on a study's own split."""

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
from models.training.cold_start import fit_cold_start
from models.training.history_network import HistoryConfig, cold_start_scores, score_histories, train_history_network
from models.training.score_weights import choose_score_weights
from tests.bench.recommend_quality.methods import Method, directly
from tests.bench.recommend_quality.simple import Rankings
from tests.bench.recommend_quality.study import Row, Views

HEED = "Heed"
NOTHING: Items = np.zeros(0, np.int64)

WITHOUT = {
    "no text": {"use_text": False},
    "no ids": {"use_ids": False},
    "no time": {"use_time": False},
    "no candidate-aware attention": {"use_candidates": False},
}


def shipped(bundle: Bundle, split: Split) -> Row:
    """By the weights that serve. The bundle must have been trained on no more than the split's training."""
    found = measure_recommender(load_recommender(bundle), load_own_catalogue(bundle)[2], split)
    return Row("Heed, as it serves", Views(found.every, found.again, found.new), {}, {}, 1)


class Trained:
    """The history network, trained on whatever it is asked for and kept for what it was asked for last.

    `texts` (items, width) are centred; `new` are newcomers, and `held_back` items with which it is found what they are
    told.
    """

    def __init__(
        self,
        texts: NDArray[np.float32],
        schedule: HistoryConfig,
        new: Items = NOTHING,
        held_back: Items = NOTHING,
    ) -> None:
        self._texts, self._schedule, self._new, self._held_back = texts, schedule, new, held_back
        self._made: tuple[Interactions, HistoryConfig, HistoryNetwork] | None = None

    def rank(self, split: Split) -> Rankings:
        training, texts = split.training, self._texts
        if self._made is None or self._made[0] is not training:
            found = choose_score_weights(training, texts, self._schedule, print)
            found = fit_cold_start(training, texts, found, self._held_back, print)
            self._made = training, found, train_history_network(training, texts, found, print)
        scores = score_histories(self._made[2], texts, split, self._made[1])
        if len(self._new):
            scores[:, self._new] += cold_start_scores(self._made[2], split, self._new)
        return sort_by_score(scores)


def trained(name: str, heed: Trained) -> Method:
    return Method(name, directly(heed.rank))


def ablations(texts: NDArray[np.float32], schedule: HistoryConfig) -> Iterator[Method]:
    for name, change in WITHOUT.items():
        schedule_without = replace(schedule, **change)  # type: ignore[arg-type]
        yield trained(f"Heed, {name}", Trained(texts, schedule_without))
