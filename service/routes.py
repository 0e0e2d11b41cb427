"""What hot routes share: how they are called, how long their caller waits, and how items and problems are told apart.

Knows the wire's common shapes, no task.
"""

# No `from __future__ import annotations` here: FastAPI could not resolve annotations that name a local dependency.

import math
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from service.admission import time_to_work
from service.errors import InvalidRequest, Problem
from service.predictor import Predictor, Timings
from service.settings import Settings

SCHEMA = "#/components/schemas/{model}"
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


def add_hot_route(
    app: FastAPI,
    path: str,
    endpoint: Callable[[Request], Awaitable[Response]],
    request: type[BaseModel],
    response: type[BaseModel],
    *more: int,
    method: str = "POST",
) -> None:
    """`more` are statuses of problems beyond those that every such route has."""
    named = [in_path(name) for name in re.findall(r"{(\w+)}", path)]
    app.router.add_api_route(
        path,
        endpoint,
        methods=[method],
        response_model=response,
        responses=problems(*sorted({400, 408, 413, 415, 422, 429, 500, 502, 503, 504, *more})),
        openapi_extra={"requestBody": _json_body(request), "parameters": [*named, _PATIENCE]},
        route_class_override=DirectRoute,
    )


def deadline_s(given: Request, settings: Settings) -> float:
    """When an answer must be ready, on the monotonic clock; raises InvalidRequest."""
    return time.monotonic() + time_to_work(min(settings.request_timeout_s, _patience_s(given)))


def _patience_s(request: Request) -> float:
    """How long the caller says it will wait."""
    given = [value.strip() for name, value in request.scope["headers"] if name == _TIMEOUT_NAME]
    if not given:
        return math.inf
    if len(given) == 1 and _MILLISECONDS.fullmatch(given[0]):
        return int(given[0]) / 1000
    raise InvalidRequest(f"{_TIMEOUT_HEADER} should be a whole number of milliseconds, 1 to 999999999, given once.")


def listed(inputs: Any) -> Sequence[Any]:
    return inputs if isinstance(inputs, list) else [inputs]


def refuse_if_none_answered(outcomes: Sequence[object], inputs: Any) -> None:
    """Raises the problem of the first item as that of the request, pointing into the request."""
    problem = outcomes[0]
    if not isinstance(problem, Problem) or not all(isinstance(outcome, Problem) for outcome in outcomes):
        return
    if problem.pointer is not None:
        place = "/inputs/0" if isinstance(inputs, list) else "/inputs"
        problem.pointer = place if isinstance(listed(inputs)[0], str) else place + problem.pointer
    raise problem


def answered(predictor: Predictor, results: list[dict[str, Any]], timings: Timings, **more: Any) -> Response:
    """A response from plain values: made by us, so that checking it would only cost time."""
    return json(
        {
            "model": predictor.bundle.name,
            "version": predictor.bundle.version,
            "results": results,
            **more,
            "timings_ms": {
                "tokenize": milliseconds(timings.tokenize_s),
                "queue": milliseconds(timings.queue_s),
                "infer": milliseconds(timings.infer_s),
            },
        }
    )


def id_of(given: Any) -> str | None:
    found: str | None = None if isinstance(given, str) else given.id
    return found


def failed(problem: Problem, given: Any) -> dict[str, Any]:
    """A FailedItem."""
    return {"error": error_of(problem), "id": id_of(given)}


def error_of(problem: Problem) -> dict[str, Any]:
    """An ItemError."""
    return {"status": problem.status, "code": problem.code, "title": problem.title, "detail": problem.detail}


def json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem responses of a route, for the OpenAPI document."""
    content = {"application/problem+json": {"schema": {"$ref": SCHEMA.format(model="ProblemBody")}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}


def in_path(name: str) -> dict[str, Any]:
    """A parameter for the OpenAPI document."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _json_body(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": SCHEMA.format(model=model.__name__)}
    return {"required": True, "content": {"application/json": {"schema": schema}}}
