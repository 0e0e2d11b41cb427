"""Heed's own rows: the shipped bundle as it serves, and networks trained on a study's own split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.evaluate_recommend import measure_recommender
from models.histories import Split
from models.ranked_metrics import best_first
from models.ranking_files import catalogue_of, load_recommender
from models.scales import with_scales
from models.train_histories import HistorySchedule, scores_of, train_histories
from models.train_newcomers import with_newcomers
from tests.bench.recommend_quality.methods import Method, directly
from tests.bench.recommend_quality.simple import Rankings
from tests.bench.recommend_quality.study import Row, Views

WITHOUT = {
    "no text": {"use_text": False},
    "no ids": {"use_ids": False},
    "no time": {"use_time": False},
    "no candidate-aware attention": {"use_candidates": False},
}


def shipped(bundle: Bundle, split: Split) -> Row:
    """By the weights that serve. The bundle must have been trained on no more than the split's training."""
    found = measure_recommender(load_recommender(bundle), catalogue_of(bundle)[2], split)
    return Row("Heed, as it serves", Views(found.every, found.again, found.new), {}, {}, 1)


def trained(name: str, texts: NDArray[np.float32], schedule: HistorySchedule) -> Method:
    """The history network, trained on whatever split it is asked for; `texts` (items, width), centred."""

    def rank(split: Split) -> Rankings:
        found = with_scales(split.training, texts, schedule, print)
        found = with_newcomers(split.training, texts, found, print)
        return best_first(scores_of(train_histories(split.training, texts, found, print), texts, split, found))

    return Method(name, directly(rank))


def ablations(texts: NDArray[np.float32], schedule: HistorySchedule) -> Iterator[Method]:
    for name, change in WITHOUT.items():
        yield trained(f"Heed, {name}", texts, replace(schedule, **change))  # type: ignore[arg-type]
