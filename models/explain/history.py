"""Attribution of a recommendation to the items of the user's history.

The explained score is the served score of one item, its calibrated probability of being in the next purchase. It is a
function of the history items that are kept. A positive weight speaks for the item, in points of that score. All events
of an item form one feature, because one event less of five purchases changes next to nothing. Events that remain keep
their age. (Log-odds would rank the items alike, since scores lie close together.)
Knows a recommender and its arrays. Knows nothing of texts or the web.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from models.explain.attribution import METHODS, ScoreMethod
from models.explain.methods import DEFAULT_METHOD, HistoryMethod
from models.ranking.events import History
from models.ranking.recommender import Recommender

ATTENTION: HistoryMethod = "attention"
"""The method whose weights the recommender itself computes. It is not the method for texts of the same name."""

HISTORY_METHODS: dict[HistoryMethod, str] = {
    name: "its share of the score, from the recommender's attention and neighbours"
    if name == ATTENTION
    else METHODS[name].about
    for name in get_args(HistoryMethod)
}
"""A line about each method."""

DEFAULT_HISTORY_METHOD: HistoryMethod = DEFAULT_METHOD

STEP_EVENTS = 4_096
"""The number of events, over several variants of a history, that one call of the recommender reads."""

ScoreHistories = Callable[[Sequence[History]], NDArray[np.float32]]
"""Maps histories to the score of the target given each of them, (histories,), as `Recommender.score` does."""


@dataclass(frozen=True, slots=True)
class HistoryInstance:
    """A recommendation to explain.

    `features` holds the positions of each item's events, in the order in which the items first occur. `shares`
    (events,) are the contributions of the events to the target's score, as in `Ranked.weights`.
    """

    history: History
    features: tuple[tuple[int, ...], ...]
    full_score: float
    shares: NDArray[np.float32]
    score_histories: ScoreHistories

    def score(self, masks: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Map masks of the features to keep, (variants, features), to the target's scores, (variants,)."""
        feature_of_event = np.empty(len(self.history), np.int64)
        for index, positions in enumerate(self.features):
            feature_of_event[list(positions)] = index
        distinct, inverse = np.unique(masks, axis=0, return_inverse=True)
        variants = [self.history.select(events) for events in distinct[:, feature_of_event]]
        step = max(1, STEP_EVENTS // len(self.history))
        scores = [self.score_histories(variants[start : start + step]) for start in range(0, len(variants), step)]
        return np.concatenate(scores)[inverse].astype(np.float64)


def make_history_instance(
    recommender: Recommender,
    history: History,
    vector: NDArray[np.float32],
    number: int,
    trained: int | None = None,
    score_histories: ScoreHistories | None = None,
) -> HistoryInstance:
    """Return the instance of a candidate with this item vector (width,) and item number.

    `trained` is the candidate's index among the items of the training data, or None as in History. `score_histories`
    replaces the recommender's own scoring of variants. Raises ValueError for an empty history, and for one that gives
    no finite score.
    """
    vectors, numbers = vector[None], np.asarray([number], np.int64)
    training_indices = None if trained is None else np.asarray([trained], np.int64)
    ranked = recommender.rank(history, vectors, numbers, 1, training_indices=training_indices)
    if not len(ranked.order):
        raise ValueError("there is no finite score")
    positions: dict[int, list[int]] = {}
    for position, item in enumerate(history.items.tolist()):
        # -1 stands for any item that is no candidate, so each such event is a feature of its own.
        positions.setdefault(item if item >= 0 else -1 - position, []).append(position)
    return HistoryInstance(
        history=history,
        features=tuple(map(tuple, positions.values())),
        full_score=float(ranked.scores[0]),
        shares=ranked.weights[0],
        score_histories=score_histories
        or (lambda histories: recommender.score(histories, vectors, numbers, training_indices)[:, 0]),
    )


def attribute_history(instance: HistoryInstance, method: HistoryMethod) -> NDArray[np.float64]:
    """Return one weight per feature, (features,). Raises ValueError for a method that histories do not support."""
    if method == ATTENTION:
        return np.asarray([instance.shares[list(positions)].sum() for positions in instance.features], np.float64)
    row = METHODS[method]
    if not isinstance(row, ScoreMethod):
        raise ValueError(f"the method {method} does not support histories: choose one of {', '.join(HISTORY_METHODS)}")
    return row.attribute(instance.score, len(instance.features))
