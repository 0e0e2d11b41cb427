"""Which items of a user's history a recommendation rests on: a weight for each, from what changes without it.

Explained is the served score of one item, its calibrated probability of being in the next purchase, as a function of
the items of the history that are kept; a positive weight speaks for the item, in points of that score. All events of an
item go together: of what was taken five times, one event less changes next to nothing. What is left keeps its age, as
if the rest had not been done. (In log-odds the methods order items alike, since scores lie close together.)
Knows a recommender and its arrays; nothing of texts or of the web.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.explain.attribution import PERMUTATIONS, occlusion, shapley, two_sided_occlusion
from models.explain.methods import HistoryMethod
from models.ranking.events import History
from models.ranking.recommender import Recommender

HISTORY_METHODS: dict[HistoryMethod, str] = {
    "two_sided_occlusion": "what an item changes in the whole history and on its own, the mean of both",
    "occlusion": "what is lost without the item",
    "shapley": "what an item changes in the mean over histories that keep other items in random order",
    "attention": "the item's part of what the history adds to the recommended one's score, by attention and neighbours",
}
DEFAULT_HISTORY_METHOD: HistoryMethod = "two_sided_occlusion"

STEP_EVENTS = 4_096
"""To read at once, of several variants of a history."""

Score = Callable[[Sequence[History]], NDArray[np.float32]]
"""Histories, as `Recommender.score` takes them, to the target's score by each, (histories,)."""


@dataclass(frozen=True, slots=True)
class HistoryInstance:
    """`parts` are the places of each item's events, in the order in which the items came first.

    `shares` (events,) are the events' parts of what they add to the target's score, as `Ranked.weights`.
    """

    history: History
    features: tuple[tuple[int, ...], ...]
    full_score: float
    shares: NDArray[np.float32]
    scored: Score

    def score(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The target's score for each variant, (variants, parts) to (variants,)."""
        part_of = np.empty(len(self.history), np.int64)
        for number, places in enumerate(self.features):
            part_of[list(places)] = number
        different, which = np.unique(kept, axis=0, return_inverse=True)
        variants = [self.history.select(events) for events in different[:, part_of]]
        step = max(1, STEP_EVENTS // len(self.history))
        scores = [self.scored(variants[start : start + step]) for start in range(0, len(variants), step)]
        return np.concatenate(scores)[which].astype(np.float64)


def make_history_instance(
    recommender: Recommender,
    history: History,
    vector: NDArray[np.float32],
    number: int,
    trained: int | None = None,
    scored: Score | None = None,
) -> HistoryInstance:
    """Why a candidate with this item vector (width,) and number has its score; `scored` is how it is asked for again.

    `trained` is its number among the items that the recommender was trained with, None as in History. Raises ValueError
    for an empty history, and for one by which there is no finite score.
    """
    vectors, numbers = vector[None], np.asarray([number], np.int64)
    known = None if trained is None else np.asarray([trained], np.int64)
    found = recommender.rank(history, vectors, numbers, 1, training_indices=known)
    if not len(found.order):
        raise ValueError("there is no finite score")
    places: dict[int, list[int]] = {}
    for place, item in enumerate(history.items.tolist()):
        # -1 is of an item that no candidate can be, each its own.
        places.setdefault(item if item >= 0 else -1 - place, []).append(place)
    return HistoryInstance(
        history=history,
        features=tuple(map(tuple, places.values())),
        full_score=float(found.scores[0]),
        shares=found.weights[0],
        scored=scored or (lambda histories: recommender.score(histories, vectors, numbers, known)[:, 0]),
    )


def attribute_history(question: HistoryInstance, method: HistoryMethod) -> NDArray[np.float64]:
    """One weight for each part of the question, (parts,)."""
    count = len(question.features)
    if method == "attention":
        return np.asarray([question.shares[list(places)].sum() for places in question.features], np.float64)
    if method == "occlusion":
        return occlusion(question.score, count)
    if method == "two_sided_occlusion":
        return two_sided_occlusion(question.score, count)
    return shapley(question.score, count, PERMUTATIONS)
