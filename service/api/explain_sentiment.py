"""/v1/explain/sentiment."""

from typing import Any

from fastapi import FastAPI, Request, Response

from models.text.language import is_readable
from service.api.explanations import _word, explainer_of, how, packed, response, wanted_of
from service.errors import InvalidRequest, Problem
from service.explanation.request import Ask, Outcome
from service.explanation.worker import Explaining
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, deadline_s
from service.http.responses import failed, id_of, listed, refuse_if_none_answered
from service.inference.predictor import Predictor
from service.schemas.explain import ExplainRequest, ExplainResponse
from service.schemas.sentiment import SentimentItem
from service.settings import Settings


def add_explain(app: FastAPI, predictor: Predictor, explaining: Explaining | None, settings: Settings) -> None:
    body = JsonBody(ExplainRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def explain(given: Request) -> Response:
        """Which words the answer to a text, or to each of up to 16, rests on; or the attention that it came from."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        inputs = listed(request.inputs)
        wanted = wanted_of(request, len(inputs), packed(given))
        asks = [_ask(one, request.target) for one in inputs]
        found = await explainer_of(explaining, "sentiment").explain("sentiment", asks, wanted, due_s)
        refuse_if_none_answered(found.outcomes, request.inputs)
        return await response(
            given, predictor, [_result(*one) for one in zip(inputs, found.outcomes, strict=True)], found
        )

    add_hot_route(app, "/v1/explain/sentiment", explain, ExplainRequest, ExplainResponse, 404)


def _ask(given: str | SentimentItem, target: str | None) -> Ask | Problem:
    text, entity = (given, None) if isinstance(given, str) else (given.text, given.entity)
    if entity is not None and not is_readable(entity):
        return InvalidRequest("The entity is empty.", pointer="/entity")
    return lambda explainer: explainer.text(text, entity, target)


def _result(given: str | SentimentItem, outcome: Outcome) -> dict[str, Any]:
    """An ExplainResult, or a FailedItem."""
    if isinstance(outcome, Problem):
        return failed(outcome, given)
    text = given if isinstance(given, str) else given.text
    found = outcome.explanation
    (passage,) = found.passages
    return {
        "label": max(found.scores, key=found.scores.__getitem__),
        "scores": found.scores,
        "target": found.target,
        "words": [_word(text, word) | {"named": word.named} for word in passage.words],
        "read": {"start": passage.read[0], "end": passage.read[1]},
        **how(outcome),
        "id": id_of(given),
    }
