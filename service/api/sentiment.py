"""`/v1/sentiment`: texts in, label, scores and polarity of each out."""

from typing import Any

from fastapi import FastAPI, Request, Response

from models.prediction.sentiment import polarity
from service.errors import Problem
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, deadline_s
from service.http.responses import as_list, failed_item, id_of, raise_if_all_failed, results_response
from service.inference.predictor import Classification, Item, Prediction, Predictor
from service.schemas.sentiment import SentimentItem, SentimentRequest, SentimentResponse
from service.settings import Settings


def add_sentiment(app: FastAPI, predictor: Predictor, settings: Settings) -> None:
    body = JsonBody(SentimentRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def sentiment(given: Request) -> Response:
        """Sentiment of one text or of up to 256, and with `entity` the sentiment towards that entity."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        inputs = as_list(request.inputs)
        answer = await predictor.predict([item_of(one) for one in inputs], request.truncate, due_s)
        raise_if_all_failed(answer.outcomes, request.inputs)
        results = [result_of(*pair) for pair in zip(inputs, answer.outcomes, strict=True)]
        return results_response(predictor, results, answer.timings)

    add_hot_route(app, "/v1/sentiment", sentiment, SentimentRequest, SentimentResponse)


def item_of(given: str | SentimentItem) -> Item:
    return Item(given) if isinstance(given, str) else Item(given.text, given.entity)


def result_of(given: str | SentimentItem, outcome: Prediction | Problem) -> dict[str, Any]:
    """A SentimentResult, or the FailedItem of a problem."""
    if isinstance(outcome, Problem):
        return failed_item(outcome, given)
    assert isinstance(outcome, Classification)
    return {
        "label": outcome.label,
        "scores": outcome.scores,
        "polarity": polarity(outcome.scores),
        "tokens": outcome.tokens,
        "truncated": outcome.truncated,
        "id": id_of(given),
    }
