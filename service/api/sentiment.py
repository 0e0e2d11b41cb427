"""`/v1/sentiment`: the label, scores and polarity of each text."""

from typing import Any

from fastapi import FastAPI, Request, Response

from models.prediction.sentiment import polarity
from service.errors import Problem
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, request_deadline_s
from service.http.openapi import Operation
from service.http.responses import (
    as_list,
    failed_item,
    id_of,
    language_fields,
    results_response,
    settle_outcomes,
    valid_items,
)
from service.inference.predictor import Classification, Item, Prediction, Predictor, UnnamedEntity
from service.schemas.sentiment import SentimentItem, SentimentRequest, SentimentResponse
from service.settings import Settings


def add_sentiment(app: FastAPI, predictor: Predictor, settings: Settings) -> None:
    """Add the route."""
    reader = JsonBody(SentimentRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def sentiment(request: Request) -> Response:
        """Classify English or Chinese texts as negative, neutral or positive.

        `inputs` is a text or a list of at most 256. With `entity`, the answer is the sentiment towards that entity. If
        the text does not name it, the result has `"found": false` and no label.
        """
        deadline_s = request_deadline_s(request, settings)
        body = await reader.read(request)
        inputs = as_list(body.inputs)
        answer = await predictor.predict([item_of(item) for item in valid_items(inputs)], body.truncate, deadline_s)
        outcomes = settle_outcomes(body.inputs, answer.outcomes)
        results = [result_of(*pair) for pair in zip(inputs, outcomes, strict=True)]
        return results_response(predictor, results, answer.timings)

    operation = Operation("classify_sentiment", "Sentiment", "Classify the sentiment of texts")
    add_hot_route(app, "/v1/sentiment", sentiment, SentimentRequest, SentimentResponse, operation)


def item_of(item: str | SentimentItem) -> Item:
    """Return an input as the item of a predictor."""
    return Item(item) if isinstance(item, str) else Item(item.text, item.entity)


def result_of(item: str | SentimentItem, outcome: Prediction | Problem) -> dict[str, Any]:
    """Return the `SentimentResult` of an input, or its `FailedItem`."""
    if isinstance(outcome, Problem):
        return failed_item(outcome, item)
    is_named = not isinstance(outcome, UnnamedEntity)
    result: dict[str, Any] = {"label": None, "scores": None, "polarity": None}
    if is_named:
        assert isinstance(outcome, Classification)
        result = {"label": outcome.label, "scores": outcome.scores, "polarity": polarity(outcome.scores)}
    if not isinstance(item, str) and item.entity is not None:
        result["found"] = is_named
    result |= {"tokens": outcome.tokens, "truncated": outcome.truncated, **language_fields(outcome.language)}
    return result | {"id": id_of(item)}
