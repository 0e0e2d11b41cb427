"""`/v1/explain/recommend`: which items of a user's history speak for a recommended item.

Explained is the score that `/v1/recommend` serves, of the item that is ranked first or of one asked about. Rankings are
made where the gateway is, so this works wherever the model of texts is.
"""

# No `from __future__ import annotations` here: FastAPI could not resolve annotations that name a local dependency.

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import structlog
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray

from models.explain.history import AUTO, ask, weigh
from models.explain.methods import HistoryMethod
from models.ranking.events import History
from models.ranking.recommender import Recommender
from service.bodies import JsonBody
from service.catalogues import Catalogues
from service.errors import InferenceFailed, InvalidRequest, Problem, TooMuchToExplain, UnknownItem
from service.explain import explainer_of, response
from service.explained import GivenUp, HistoryExplained, ItemWeight
from service.explaining import AskHistory, Explaining, Pace
from service.predictor import Predictor
from service.question import Question
from service.recommend import Read, item_at, named, questions_of, shortened
from service.recommending import Recommending, answer, arrays_of
from service.routes import add_hot_route, deadline_s, failed, listed, refuse_if_none_answered
from service.schemas_explain import MAX_EXPLAINED
from service.schemas_explain_recommend import ExplainedUser, ExplainRecommendRequest, ExplainRecommendResponse
from service.settings import Settings

_log = structlog.get_logger(__name__)

_FAILED = "The model failed on this history."


def add_explain_recommend(
    app: FastAPI,
    predictor: Predictor,
    recommending: Recommending,
    catalogues: Catalogues,
    explaining: Explaining | None,
    settings: Settings,
) -> None:
    body = JsonBody(ExplainRecommendRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def explain(given: Request) -> Response:
        """Which items of a history, or of each of up to 16, speak for the item ranked first, or for one asked about."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        users: Sequence[ExplainedUser] = listed(request.inputs)
        if len(users) > MAX_EXPLAINED:
            reason = f"At most {MAX_EXPLAINED} recommendations are explained in one request."
            raise TooMuchToExplain(reason, pointer="/inputs")
        explainer = explainer_of(explaining)
        questions, read, _ = await questions_of(predictor, catalogues, users, due_s)
        method: HistoryMethod = AUTO if request.method == "auto" else request.method
        asks = [
            ask_of(recommending.recommender, question, user.target, method)
            for user, question in zip(users, questions, strict=True)
        ]
        found = await explainer.explain_histories(asks, due_s)
        refuse_if_none_answered(found.outcomes, request.inputs)
        each = zip(users, questions, found.outcomes, strict=True)
        return await response(given, predictor, [result_of(*one, read) for one in each], found)

    add_hot_route(app, "/v1/explain/recommend", explain, ExplainRecommendRequest, ExplainRecommendResponse, 404, 409)


def ask_of(
    recommender: Recommender, question: Question | Problem, target: str | None, method: HistoryMethod
) -> AskHistory | Problem:
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


def _place_of(question: Question, item_id: str) -> int | None:
    """Of an item among the candidates, or its row; of an item that came with a text of its own, by its id too."""
    row = question.snapshot.number_of.get(item_id)
    if question.candidates is None:
        return row
    if row is None:
        sent = (number for number, one in enumerate(question.sent) if one.item_id == item_id)
        row = next((question.snapshot.rows + number for number in sent), None)
    return None if row is None else next(iter(np.flatnonzero(question.candidates == row).tolist()), None)


def result_of(
    user: ExplainedUser, question: Question | Problem, outcome: HistoryExplained | Problem, read: Read
) -> dict[str, Any]:
    """An ExplainRecommendResult, or a FailedItem."""
    if isinstance(outcome, Problem):
        return failed(outcome, user)
    assert isinstance(question, Question)
    return {
        "target": {**item_at(question, outcome.place), "score": outcome.score},
        "method": outcome.method,
        "history": [_weighed(question, one) for one in outcome.weights],
        "catalogue": question.snapshot.name,
        "history_used": len(question.items),
        "history_dropped": question.dropped,
        "history_skipped": question.skipped,
        "truncated": shortened(question, read),
        "id": user.id,
    }


def _weighed(question: Question, one: ItemWeight) -> dict[str, Any]:
    item_id, text = named(question, int(question.items[one.events[0]]))
    indexes = sorted(question.places[event] for event in one.events)
    return {"history_indexes": indexes, "item_id": item_id, "text": text, "weight": one.weight}


# What follows runs in the thread that explains.


def _explained(
    recommender: Recommender, question: Question, place: int | None, method: HistoryMethod, pace: Pace
) -> HistoryExplained | Problem:
    """Of the candidate or row at `place`, of the one that is ranked first if it is None. Raises GivenUp."""
    if place is None:
        first = pace.step(lambda: answer(recommender, replace(question, top_k=1, newcomers=0)))
        if isinstance(first, Problem):
            return first
        if not first.places:
            return InvalidRequest("No item is left to be recommended, so none can be explained.", pointer="")
        place = first.places[0]
    try:
        history, vectors, trained = arrays_of(recommender, question)
        vector, number = vectors[[place]], place if question.candidates is None else int(question.candidates[place])
        known = None if trained is None else trained[[place]]

        def scored(histories: Sequence[History]) -> NDArray[np.float32]:
            return pace.step(lambda: recommender.score(histories, vector, np.asarray([number]), known)[:, 0])

        asked = ask(recommender, history, vector[0], number, None if known is None else int(known[0]), scored)
        weights = weigh(asked, method)
    except GivenUp:
        raise
    except Exception as error:  # this history's problem, as where it is ranked
        _log.error("explaining failed", error=type(error).__name__)
        return InferenceFailed(_FAILED)
    if not np.isfinite(weights).all():
        return InferenceFailed(_FAILED)
    items = zip(asked.parts, weights.tolist(), strict=True)
    return HistoryExplained(place, asked.score, method, tuple(ItemWeight(*one) for one in items))
