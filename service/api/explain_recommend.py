"""`/v1/explain/recommend`: the items of a user's history behind a recommendation.

It explains the score that `/v1/recommend` serves, for the first item or for a target. Gateways rank items themselves,
so this route works wherever the model of texts is.
"""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response

from models.explain.history import DEFAULT_HISTORY_METHOD
from models.explain.methods import HistoryMethod
from service.api.explanations import EXPLANATIONS, explanation_response, require_worker
from service.api.recommend import PredictionsByText, Rankings, build_queries, is_truncated, item_at, item_id_and_text
from service.errors import ExplanationTooLarge, Problem
from service.explanation.history import history_job
from service.explanation.request import HistoryExplanation, ItemWeight
from service.explanation.worker import ExplanationWorker
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, request_deadline_s
from service.http.openapi import Operation
from service.http.responses import as_list, failed_item, settle_outcomes
from service.http.validation import InvalidItem
from service.inference.predictor import Predictor
from service.inference.ranking_query import RankingQuery
from service.schemas.explain import MAX_EXPLAINED
from service.schemas.explain_recommend import ExplainedUser, ExplainRecommendRequest, ExplainRecommendResponse
from service.settings import Settings


def add_explain_recommend(
    app: FastAPI, predictor: Predictor, rankings: Rankings, explanations: ExplanationWorker | None, settings: Settings
) -> None:
    """Add the route."""
    reader = JsonBody(ExplainRecommendRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def explain(request: Request) -> Response:
        """Explain a recommendation: the weight of each item of the user's history.

        `inputs` is a user or a list of at most 16. `target` is the item to explain, by default the item that is ranked
        first.
        """
        deadline_s = request_deadline_s(request, settings)
        body = await reader.read(request)
        users: Sequence[ExplainedUser | InvalidItem] = as_list(body.inputs)
        if len(users) > MAX_EXPLAINED:
            reason = f"A request can explain at most {MAX_EXPLAINED} recommendations."
            raise ExplanationTooLarge(reason, pointer="/inputs")
        worker = require_worker(explanations)
        queries, predictions, _ = await build_queries(predictor, rankings.catalogues, users, deadline_s)
        method: HistoryMethod = DEFAULT_HISTORY_METHOD if body.method == "auto" else body.method
        jobs = [
            history_job(
                rankings.engine.recommender, query, None if isinstance(user, InvalidItem) else user.target, method
            )
            for user, query in zip(users, queries, strict=True)
        ]
        batch = await worker.explain_histories(jobs, deadline_s)
        outcomes = settle_outcomes(body.inputs, batch.outcomes)
        results = [explanation_result(*fields, predictions) for fields in zip(users, queries, outcomes, strict=True)]
        return await explanation_response(request, predictor, results, batch)

    summary = "Explain a recommendation by the items of a history"
    operation = Operation("explain_recommendation", EXPLANATIONS, summary, problems=(404, 409))
    add_hot_route(app, "/v1/explain/recommend", explain, ExplainRecommendRequest, ExplainRecommendResponse, operation)


def explanation_result(
    user: ExplainedUser | InvalidItem,
    query: RankingQuery | Problem,
    outcome: HistoryExplanation | Problem,
    predictions: PredictionsByText,
) -> dict[str, Any]:
    """Return the `ExplainRecommendResult` of a user, or the `FailedItem`."""
    if isinstance(outcome, Problem):
        return failed_item(outcome, user)
    assert isinstance(query, RankingQuery)
    return {
        "target": {**item_at(query, outcome.position), "score": outcome.score},
        "method": outcome.method,
        "history": [_item_weight(query, weight) for weight in outcome.weights],
        "catalogue": query.snapshot.name,
        "history_used": len(query.items),
        "history_dropped": query.dropped,
        "history_skipped": query.skipped,
        "truncated": is_truncated(query, predictions),
        "id": user.id,
    }


def _item_weight(query: RankingQuery, weight: ItemWeight) -> dict[str, Any]:
    item_id, text = item_id_and_text(query, int(query.items[weight.events[0]]))
    indexes = sorted(query.history_positions[event] for event in weight.events)
    return {"history_indexes": indexes, "item_id": item_id, "text": text, "weight": weight.weight}
