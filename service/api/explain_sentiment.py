"""`/v1/explain/sentiment`: the words behind a label, or attention maps."""

from typing import Any

from fastapi import FastAPI, Request, Response

from models.text.language import has_text
from service.api.explanations import (
    EXPLANATIONS,
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
from service.http.hot_route import add_hot_route, request_deadline_s
from service.http.openapi import Operation
from service.http.responses import as_list, failed_item, id_of, settle_outcomes
from service.http.validation import InvalidItem
from service.inference.predictor import Predictor
from service.schemas.explain import ExplainRequest, ExplainResponse
from service.schemas.sentiment import SentimentItem
from service.settings import Settings


def add_explain_sentiment(
    app: FastAPI, predictor: Predictor, explanations: ExplanationWorker | None, settings: Settings
) -> None:
    """Add the route."""
    reader = JsonBody(ExplainRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def explain(request: Request) -> Response:
        """Explain a sentiment label: the weight of each word, or attention maps.

        `inputs` is a text or a list of at most 16. With `Accept: application/x-npz`, attention maps come as a file of
        arrays.
        """
        deadline_s = request_deadline_s(request, settings)
        body = await reader.read(request)
        inputs = as_list(body.inputs)
        options = parse_request(body, len(inputs), accepts_npz(request))
        instances = [_instance_factory(item, body.target) for item in inputs]
        worker = require_worker(explanations, "sentiment")
        batch = await worker.explain("sentiment", instances, options, deadline_s)
        outcomes = settle_outcomes(body.inputs, batch.outcomes)
        results = [_result(*pair) for pair in zip(inputs, outcomes, strict=True)]
        return await explanation_response(request, predictor, results, batch)

    summary = "Explain the sentiment of texts by their words"
    operation = Operation("explain_sentiment", EXPLANATIONS, summary, problems=(404,))
    add_hot_route(app, "/v1/explain/sentiment", explain, ExplainRequest, ExplainResponse, operation)


def _instance_factory(item: str | SentimentItem | InvalidItem, target: str | None) -> InstanceFactory | Problem:
    if isinstance(item, InvalidItem):
        return item.problem
    text, entity = (item, None) if isinstance(item, str) else (item.text, item.entity)
    if entity is not None and not has_text(entity):
        return InvalidRequest("The entity is empty.", pointer="/entity")
    return lambda explainer: explainer.text_instance(text, entity, target, only_named=True)


def _result(item: str | SentimentItem, outcome: TextOutcome) -> dict[str, Any]:
    """Return the `ExplainResult` of an input, or its `FailedItem`."""
    if isinstance(outcome, Problem):
        return failed_item(outcome, item)
    text = item if isinstance(item, str) else item.text
    explanation = outcome.explanation
    (segment,) = explanation.segments
    return {
        "label": max(explanation.scores, key=explanation.scores.__getitem__),
        "scores": explanation.scores,
        "target": explanation.target,
        "words": [word_weight(text, word) | {"is_entity": word.is_entity} for word in segment.words],
        "read_span": {"start": segment.read_span[0], "end": segment.read_span[1]},
        **method_fields(outcome, text),
        "id": id_of(item),
    }
