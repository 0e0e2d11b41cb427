"""/v1/explain/sentiment."""

from typing import Any

from fastapi import FastAPI, Request, Response

from models.text.language import has_text
from service.api.explanations import (
    accepts_npz,
    explanation_response,
    method_fields,
    parse_request,
    require_worker,
    word_weight,
)
from service.errors import InvalidRequest, Problem
from service.explanation.request import InstanceFactory, TextOutcome
from service.explanation.worker import ExplanationWorker
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, deadline_s
from service.http.responses import as_list, failed_item, id_of, raise_if_all_failed
from service.inference.predictor import Predictor
from service.schemas.explain import ExplainRequest, ExplainResponse
from service.schemas.sentiment import SentimentItem
from service.settings import Settings


def add_explain_sentiment(
    app: FastAPI, predictor: Predictor, explaining: ExplanationWorker | None, settings: Settings
) -> None:
    body = JsonBody(ExplainRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def explain(given: Request) -> Response:
        """Which words the answer to a text, or to each of up to 16, rests on; or the attention that it came from."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        inputs = as_list(request.inputs)
        wanted = parse_request(request, len(inputs), accepts_npz(given))
        asks = [_ask(one, request.target) for one in inputs]
        found = await require_worker(explaining, "sentiment").explain("sentiment", asks, wanted, due_s)
        raise_if_all_failed(found.outcomes, request.inputs)
        return await explanation_response(
            given, predictor, [_result(*one) for one in zip(inputs, found.outcomes, strict=True)], found
        )

    add_hot_route(app, "/v1/explain/sentiment", explain, ExplainRequest, ExplainResponse, 404)


def _ask(given: str | SentimentItem, target: str | None) -> InstanceFactory | Problem:
    text, entity = (given, None) if isinstance(given, str) else (given.text, given.entity)
    if entity is not None and not has_text(entity):
        return InvalidRequest("The entity is empty.", pointer="/entity")
    return lambda explainer: explainer.text_instance(text, entity, target)


def _result(given: str | SentimentItem, outcome: TextOutcome) -> dict[str, Any]:
    """An ExplainResult, or a FailedItem."""
    if isinstance(outcome, Problem):
        return failed_item(outcome, given)
    text = given if isinstance(given, str) else given.text
    found = outcome.explanation
    (passage,) = found.segments
    return {
        "label": max(found.scores, key=found.scores.__getitem__),
        "scores": found.scores,
        "target": found.target,
        "words": [word_weight(text, word) | {"is_entity": word.is_entity} for word in passage.words],
        "read_span": {"start": passage.read_span[0], "end": passage.read_span[1]},
        **method_fields(outcome),
        "id": id_of(given),
    }
