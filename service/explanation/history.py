"""One recommendation explained, in the explanation thread."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import structlog
from numpy.typing import NDArray

from models.explain.history import attribute_history, make_history_instance
from models.explain.methods import HistoryMethod
from models.ranking.events import History
from models.ranking.recommender import Recommender
from service.errors import InferenceFailed, InvalidRequest, Problem, UnknownItem
from service.explanation.pacing import Pacer
from service.explanation.request import ExplanationCancelled, HistoryExplanation, ItemWeight
from service.explanation.worker import HistoryJob
from service.inference.ranking import rank_query, ranking_inputs
from service.inference.ranking_query import RankingQuery

_log = structlog.get_logger(__name__)

_FAILED = "The model failed on this history."


def history_job(
    recommender: Recommender, question: RankingQuery | Problem, target: str | None, method: HistoryMethod
) -> HistoryJob | Problem:
    """The work of the thread, or what is wrong with the item already."""
    if isinstance(question, Problem):
        return question
    if not len(question.items):
        reason = "Without a known item in the history, items are ranked by popularity: there is nothing to explain."
        return InvalidRequest(reason, pointer="/history")
    place = None
    if target is not None:
        place = _place_of(question, target)
        if place is None:
            among = "among the candidates" if question.candidates is not None else f"in {question.snapshot.name}"
            return UnknownItem(f"The target is not {among}.", pointer="/target")
    return partial(_explained, recommender, question, place, method)


def _place_of(question: RankingQuery, item_id: str) -> int | None:
    """Of an item among the candidates, or its row; of an item that came with a text of its own, by its id too."""
    row = question.snapshot.row_by_id.get(item_id)
    if question.candidates is None:
        return row
    if row is None:
        sent = (number for number, one in enumerate(question.inline_items) if one.item_id == item_id)
        row = next((question.snapshot.rows + number for number in sent), None)
    return None if row is None else next(iter(np.flatnonzero(question.candidates == row).tolist()), None)


# What follows runs in the thread that explains.


def _explained(
    recommender: Recommender, question: RankingQuery, place: int | None, method: HistoryMethod, pace: Pacer
) -> HistoryExplanation | Problem:
    """Of the candidate or row at `place`, of the one that is ranked first if it is None. Raises GivenUp."""
    if place is None:
        first = pace.step(lambda: rank_query(recommender, replace(question, top_k=1, min_new_items=0)))
        if isinstance(first, Problem):
            return first
        if not first.positions:
            return InvalidRequest("No item is left to be recommended, so none can be explained.", pointer="")
        place = first.positions[0]
    try:
        history, vectors, trained = ranking_inputs(recommender, question)
        vector, number = vectors[[place]], place if question.candidates is None else int(question.candidates[place])
        known = None if trained is None else trained[[place]]

        def scored(histories: Sequence[History]) -> NDArray[np.float32]:
            return pace.step(lambda: recommender.score(histories, vector, np.asarray([number]), known)[:, 0])

        asked = make_history_instance(
            recommender, history, vector[0], number, None if known is None else int(known[0]), scored
        )
        weights = attribute_history(asked, method)
    except ExplanationCancelled:
        raise
    except Exception as error:  # this history's problem, as where it is ranked
        _log.error("explaining failed", error=type(error).__name__)
        return InferenceFailed(_FAILED)
    if not np.isfinite(weights).all():
        return InferenceFailed(_FAILED)
    items = zip(asked.features, weights.tolist(), strict=True)
    return HistoryExplanation(place, asked.full_score, method, tuple(ItemWeight(*one) for one in items))
