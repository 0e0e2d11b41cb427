"""`/v1/explain/recommend`: which items of a user's history speak for a recommended item.

Explained is the score that `/v1/recommend` serves, of the item that is ranked first or of one asked about. Rankings are
made where the gateway is, so this works wherever the model of texts is.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response

from models.explain.history import DEFAULT_HISTORY_METHOD
from models.explain.methods import HistoryMethod
from service.api.explanations import explanation_response, require_worker
from service.api.recommend import PredictionsByText, Rankings, build_queries, is_truncated, item_at, item_id_and_text
from service.errors import ExplanationTooLarge, Problem
from service.explanation.history import history_job
from service.explanation.request import HistoryExplanation, ItemWeight
from service.explanation.worker import ExplanationWorker
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, deadline_s
from service.http.responses import as_list, failed_item, raise_if_all_failed
from service.inference.predictor import Predictor
from service.inference.ranking_query import RankingQuery
from service.schemas.explain import MAX_EXPLAINED
from service.schemas.explain_recommend import ExplainedUser, ExplainRecommendRequest, ExplainRecommendResponse
from service.settings import Settings


def add_explain_recommend(
    app: FastAPI, predictor: Predictor, rankings: Rankings, explaining: ExplanationWorker | None, settings: Settings
) -> None:
    body = JsonBody(ExplainRecommendRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def explain(given: Request) -> Response:
        """Which items of a history, or of each of up to 16, speak for the item ranked first, or for one asked about."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        users: Sequence[ExplainedUser] = as_list(request.inputs)
        if len(users) > MAX_EXPLAINED:
            reason = f"At most {MAX_EXPLAINED} recommendations are explained in one request."
            raise ExplanationTooLarge(reason, pointer="/inputs")
        explainer = require_worker(explaining)
        questions, read, _ = await build_queries(predictor, rankings.catalogues, users, due_s)
        method: HistoryMethod = DEFAULT_HISTORY_METHOD if request.method == "auto" else request.method
        asks = [
            history_job(rankings.engine.recommender, question, user.target, method)
            for user, question in zip(users, questions, strict=True)
        ]
        found = await explainer.explain_histories(asks, due_s)
        raise_if_all_failed(found.outcomes, request.inputs)
        each = zip(users, questions, found.outcomes, strict=True)
        return await explanation_response(given, predictor, [explanation_result(*one, read) for one in each], found)

    add_hot_route(app, "/v1/explain/recommend", explain, ExplainRecommendRequest, ExplainRecommendResponse, 404, 409)


def explanation_result(
    user: ExplainedUser,
    question: RankingQuery | Problem,
    outcome: HistoryExplanation | Problem,
    read: PredictionsByText,
) -> dict[str, Any]:
    """An ExplainRecommendResult, or a FailedItem."""
    if isinstance(outcome, Problem):
        return failed_item(outcome, user)
    assert isinstance(question, RankingQuery)
    return {
        "target": {**item_at(question, outcome.position), "score": outcome.score},
        "method": outcome.method,
        "history": [_weighed(question, one) for one in outcome.weights],
        "catalogue": question.snapshot.name,
        "history_used": len(question.items),
        "history_dropped": question.dropped,
        "history_skipped": question.skipped,
        "truncated": is_truncated(question, read),
        "id": user.id,
    }


def _weighed(question: RankingQuery, one: ItemWeight) -> dict[str, Any]:
    item_id, text = item_id_and_text(question, int(question.items[one.events[0]]))
    indexes = sorted(question.history_positions[event] for event in one.events)
    return {"history_indexes": indexes, "item_id": item_id, "text": text, "weight": one.weight}
