"""`/v1/explain/recommend`: which items of a user's history speak for a recommended item.

Explained is the score that `/v1/recommend` serves, of the item that is ranked first or of one asked about. Rankings are
made where the gateway is, so this works wherever the model of texts is.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response

from models.explain.history import AUTO
from models.explain.methods import HistoryMethod
from service.api.explanations import explainer_of, response
from service.api.recommend import Rankings, Read, item_at, named, questions_of, shortened
from service.errors import Problem, TooMuchToExplain
from service.explanation.history import ask_of
from service.explanation.request import HistoryExplained, ItemWeight
from service.explanation.worker import Explaining
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, deadline_s
from service.http.responses import failed, listed, refuse_if_none_answered
from service.inference.predictor import Predictor
from service.inference.ranking_query import Question
from service.schemas.explain import MAX_EXPLAINED
from service.schemas.explain_recommend import ExplainedUser, ExplainRecommendRequest, ExplainRecommendResponse
from service.settings import Settings


def add_explain_recommend(
    app: FastAPI, predictor: Predictor, rankings: Rankings, explaining: Explaining | None, settings: Settings
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
        questions, read, _ = await questions_of(predictor, rankings.catalogues, users, due_s)
        method: HistoryMethod = AUTO if request.method == "auto" else request.method
        asks = [
            ask_of(rankings.engine.recommender, question, user.target, method)
            for user, question in zip(users, questions, strict=True)
        ]
        found = await explainer.explain_histories(asks, due_s)
        refuse_if_none_answered(found.outcomes, request.inputs)
        each = zip(users, questions, found.outcomes, strict=True)
        return await response(given, predictor, [result_of(*one, read) for one in each], found)

    add_hot_route(app, "/v1/explain/recommend", explain, ExplainRecommendRequest, ExplainRecommendResponse, 404, 409)


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
