"""The explanation of a recommendation, in the explanation thread."""

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
from service.errors import InferenceFailed, InvalidRequest, Problem, UnknownItem, describe_fault
from service.explanation.pacing import Pacer
from service.explanation.request import ExplanationCancelled, HistoryExplanation, ItemWeight
from service.explanation.worker import HistoryJob
from service.inference.ranking import rank_query, ranking_inputs
from service.inference.ranking_query import RankingQuery

_log = structlog.get_logger(__name__)

_FAILED = "The model failed on this history."


def history_job(
    recommender: Recommender, query: RankingQuery | Problem, target: str | None, method: HistoryMethod
) -> HistoryJob | Problem:
    """Return the work of the thread for one user, or the user's problem."""
    if isinstance(query, Problem):
        return query
    if not len(query.items):
        reason = "Without a known item in the history, items are ranked by popularity. There is nothing to explain."
        return InvalidRequest(reason, pointer="/history")
    position = None
    if target is not None:
        position = _find_position(query, target)
        if position is None:
            where = "among the candidates" if query.candidates is not None else f"in {query.snapshot.name}"
            return UnknownItem(f"The target is not {where}.", pointer="/target")
    return partial(_explain_position, recommender, query, position, method)


def _find_position(query: RankingQuery, item_id: str) -> int | None:
    """Return the item's index among the candidates, or its row in the catalogue; inline items count by id too."""
    number = query.snapshot.row_by_id.get(item_id)
    if query.candidates is None:
        return number
    if number is None:
        matches = (index for index, item in enumerate(query.inline_items) if item.item_id == item_id)
        number = next((query.snapshot.rows + index for index in matches), None)
    return None if number is None else next(iter(np.flatnonzero(query.candidates == number).tolist()), None)


# The following function runs in the explanation thread.


def _explain_position(
    recommender: Recommender, query: RankingQuery, position: int | None, method: HistoryMethod, pacer: Pacer
) -> HistoryExplanation | Problem:
    """Return the explanation of the candidate or row at `position`, or of the best one if it is None.

    Raises:
        ExplanationCancelled: The caller no longer waits.
    """
    if position is None:
        ranking = pacer.step(lambda: rank_query(recommender, replace(query, top_k=1, min_new_items=0)))
        if isinstance(ranking, Problem):
            return ranking
        if not ranking.positions:
            return InvalidRequest("No item is left to recommend, so there is nothing to explain.", pointer="")
        position = ranking.positions[0]
    try:
        history, vectors, trained = ranking_inputs(recommender, query)
        vector, number = vectors[[position]], position if query.candidates is None else int(query.candidates[position])
        known = None if trained is None else trained[[position]]

        def score(histories: Sequence[History]) -> NDArray[np.float32]:
            return pacer.step(lambda: recommender.score(histories, vector, np.asarray([number]), known)[:, 0])

        instance = make_history_instance(
            recommender, history, vector[0], number, None if known is None else int(known[0]), score
        )
        weights = attribute_history(instance, method)
    except ExplanationCancelled:
        raise
    except Exception as error:  # it is this history's problem, as it is in the ranking engine
        _log.error("explaining failed", **describe_fault(error))
        return InferenceFailed(_FAILED)
    if not np.isfinite(weights).all():
        return InferenceFailed(_FAILED)
    pairs = zip(instance.features, weights.tolist(), strict=True)
    return HistoryExplanation(position, instance.full_score, method, tuple(ItemWeight(*pair) for pair in pairs))
