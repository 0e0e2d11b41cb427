"""The HTTP surface: routes of a few lines over predictors that are given.

Turns the wire into items and outcomes into the wire, and nothing else: bodies are read in `bodies`, problems become
answers in `errors`, counting happens in `middleware`. Knows nothing of Ray or of where a model runs.
"""

# No `from __future__ import annotations` here: FastAPI could not resolve annotations that name a local dependency.

import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.types import Receive, Scope, Send

from models.bundle import Bundle
from service import errors
from service.admission import time_to_work
from service.bodies import JsonBody
from service.errors import InvalidRequest, NotReady, Problem
from service.metrics import CONTENT_TYPE, Metrics
from service.middleware import Envelope
from service.predictor import Answer, Answered, Item, Predictor
from service.schemas import (
    MAX_INPUTS,
    Health,
    Limits,
    MetricInfo,
    ModelInfo,
    ModelList,
    ProblemBody,
    SentimentItem,
    SentimentRequest,
    SentimentResponse,
)
from service.settings import Settings

_SCHEMA = "#/components/schemas/{model}"
_RETRY_S = 2.0
_TIMEOUT_HEADER = "X-Request-Timeout-Ms"
_TIMEOUT_NAME = _TIMEOUT_HEADER.lower().encode()
_MILLISECONDS = re.compile(rb"[1-9][0-9]{0,8}")
_PATIENCE = {
    "name": _TIMEOUT_HEADER,
    "in": "header",
    "description": "how long the caller will wait: what cannot be answered in that time is refused at once",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
}


class DirectRoute(APIRoute):
    """A hot route: documented and chosen like any other, its endpoint called with nothing but the request.

    FastAPI's own handling resolves dependencies, parses the query and opens two exit stacks for every request.
    """

    def __init__(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], **options: Any) -> None:
        super().__init__(path, endpoint, **options)

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = answer


def create_app(predictors: Mapping[str, Predictor], settings: Settings, metrics: Metrics) -> FastAPI:
    """The application over predictors by task name; its lifespan starts and stops them."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for predictor in predictors.values():
            await predictor.start()
        yield
        for predictor in predictors.values():
            await predictor.stop()

    app = FastAPIOffline(
        redoc_url=None,
        title="Heed",
        summary="Financial sentiment, English and Chinese",
        version=_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        swagger_ui_parameters={"validatorUrl": None},
    )
    errors.install(app)
    app.add_middleware(Envelope, metrics=metrics)
    _add_sentiment(app, predictors["sentiment"], settings)
    _add_operations(app, predictors, settings, metrics)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _add_sentiment(app: FastAPI, predictor: Predictor, settings: Settings) -> None:
    body = JsonBody(SentimentRequest, settings.max_body_bytes, settings.request_timeout_s)

    async def sentiment(given: Request) -> Response:
        """Sentiment of one text or of up to 256, and with `entity` the sentiment towards that entity."""
        deadline_s = time.monotonic() + time_to_work(min(settings.request_timeout_s, _patience_s(given)))
        request = await body.read(given)
        inputs = request.inputs if isinstance(request.inputs, list) else [request.inputs]
        answer = await predictor.predict([_item(given) for given in inputs], request.truncate, deadline_s)
        if not any(isinstance(outcome, Answered) for outcome in answer.outcomes):
            raise _placed(answer.outcomes[0], request)
        return _json(_response(predictor.bundle, inputs, answer))

    app.router.add_api_route(
        "/v1/sentiment",
        sentiment,
        methods=["POST"],
        response_model=SentimentResponse,
        responses=_problems(400, 408, 413, 415, 422, 429, 500, 502, 503, 504),
        openapi_extra={"requestBody": _json_body(SentimentRequest), "parameters": [_PATIENCE]},
        route_class_override=DirectRoute,
    )


def _add_operations(app: FastAPI, predictors: Mapping[str, Predictor], settings: Settings, metrics: Metrics) -> None:
    @app.get("/v1/models")
    async def models() -> ModelList:
        """The models that are served: labels, limits, digest, and the figures they were measured at."""
        return ModelList(models=[_model_info(predictor.bundle, settings) for predictor in predictors.values()])

    @app.get("/healthz", responses=_problems(503))
    async def healthz() -> Health:
        """Alive; 503 when this process can no longer answer and should be replaced."""
        if not all(predictor.healthy for predictor in predictors.values()):
            raise NotReady("The inference thread has died.", retry_after_s=_RETRY_S)
        return Health(status="ok")

    @app.get("/readyz", responses=_problems(503))
    async def readyz() -> Health:
        """Models loaded and warm; 503 before that, and while shutting down."""
        if not all(predictor.ready for predictor in predictors.values()):
            raise NotReady("The models are not loaded and warm.", retry_after_s=_RETRY_S)
        return Health(status="ok")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Prometheus text, summed over all replicas of this node."""
        return Response(metrics.render(), media_type=CONTENT_TYPE)


def _patience_s(request: Request) -> float:
    """How long the caller says it will wait; raises InvalidRequest."""
    given = [value.strip() for name, value in request.scope["headers"] if name == _TIMEOUT_NAME]
    if not given:
        return math.inf
    if len(given) == 1 and _MILLISECONDS.fullmatch(given[0]):
        return int(given[0]) / 1000
    raise InvalidRequest(f"{_TIMEOUT_HEADER} should be a whole number of milliseconds, 1 to 999999999, given once.")


def _item(given: str | SentimentItem) -> Item:
    return Item(given) if isinstance(given, str) else Item(given.text, given.entity)


def _placed(problem: Answered | Problem, request: SentimentRequest) -> Problem:
    """The problem of the first item as the problem of the request, pointing into the request."""
    assert isinstance(problem, Problem)
    if problem.pointer is not None:
        listed = isinstance(request.inputs, list)
        first = request.inputs[0] if isinstance(request.inputs, list) else request.inputs
        place = "/inputs/0" if listed else "/inputs"
        problem.pointer = place if isinstance(first, str) else place + problem.pointer
    return problem


def _response(bundle: Bundle, inputs: Sequence[str | SentimentItem], answer: Answer) -> dict[str, Any]:
    """A SentimentResponse as plain values: made by us, so that checking it would only cost time."""
    timings = answer.timings
    return {
        "model": bundle.name,
        "version": bundle.version,
        "results": [_result(given, outcome) for given, outcome in zip(inputs, answer.outcomes, strict=True)],
        "timings_ms": {
            "tokenize": _ms(timings.tokenize_s),
            "queue": _ms(timings.queue_s),
            "infer": _ms(timings.infer_s),
        },
    }


def _result(given: str | SentimentItem, outcome: Answered | Problem) -> dict[str, Any]:
    """A SentimentResult, or the FailedItem of a problem."""
    given_id = None if isinstance(given, str) else given.id
    if isinstance(outcome, Problem):
        error = {
            "status": outcome.status,
            "code": outcome.code,
            "title": outcome.title,
            "detail": outcome.detail,
        }
        return {"error": error, "id": given_id}
    found = outcome.sentiment
    return {
        "label": found.label,
        "scores": found.scores,
        "polarity": found.polarity,
        "tokens": outcome.tokens,
        "truncated": outcome.truncated,
        "id": given_id,
    }


def _model_info(bundle: Bundle, settings: Settings) -> ModelInfo:
    return ModelInfo(
        name=bundle.name,
        version=bundle.version,
        task=bundle.task.name,
        labels=list(bundle.task.labels),
        languages=list(bundle.languages),
        digest=bundle.digest,
        base=bundle.base,
        limits=Limits(max_tokens=bundle.max_tokens, max_inputs=MAX_INPUTS, max_body_bytes=settings.max_body_bytes),
        metrics=[
            MetricInfo(dataset=m.dataset, language=m.language, name=m.name, value=m.value, command=m.command)
            for m in bundle.metrics
        ],
    )


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem responses of a route, for the OpenAPI document."""
    content = {"application/problem+json": {"schema": {"$ref": _SCHEMA.format(model="ProblemBody")}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def _json_body(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": _SCHEMA.format(model=model.__name__)}
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schemas that FastAPI cannot see because bodies and problems are ours."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        _, unseen = models_json_schema(
            [(SentimentRequest, "validation"), (ProblemBody, "serialization")], ref_template=_SCHEMA
        )
        document["components"]["schemas"] |= unseen["$defs"]
        app.openapi_schema = document
    return app.openapi_schema


def _version() -> str:
    try:
        return version("heed")
    except PackageNotFoundError:
        return "0"
