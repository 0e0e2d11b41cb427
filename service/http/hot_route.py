"""What hot routes share: how they are called, how long their caller waits, and how items and problems are told apart.

Knows the wire's common shapes, no task.
"""

import math
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from service.errors import InvalidRequest
from service.http.openapi import request_models
from service.http.responses import SCHEMA, problem_responses
from service.inference.admission import work_budget_s
from service.settings import Settings

_TIMEOUT_HEADER = "X-Request-Timeout-Ms"
_TIMEOUT_NAME = _TIMEOUT_HEADER.lower().encode()
_MILLISECONDS = re.compile(rb"[1-9][0-9]{0,8}")
_TIMEOUT_PARAMETER = {
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
    request_models(app).append(request)
    named = [path_parameter(name) for name in re.findall(r"{(\w+)}", path)]
    app.router.add_api_route(
        path,
        endpoint,
        methods=[method],
        response_model=response,
        responses=problem_responses(*sorted({400, 408, 413, 415, 422, 429, 500, 502, 503, 504, *more})),
        openapi_extra={"requestBody": _json_body(request), "parameters": [*named, _TIMEOUT_PARAMETER]},
        route_class_override=DirectRoute,
    )


def deadline_s(given: Request, settings: Settings) -> float:
    """When an answer must be ready, on the monotonic clock; raises InvalidRequest."""
    return time.monotonic() + work_budget_s(min(settings.request_timeout_s, _caller_timeout_s(given)))


def _caller_timeout_s(request: Request) -> float:
    """How long the caller says it will wait."""
    given = [value.strip() for name, value in request.scope["headers"] if name == _TIMEOUT_NAME]
    if not given:
        return math.inf
    if len(given) == 1 and _MILLISECONDS.fullmatch(given[0]):
        return int(given[0]) / 1000
    raise InvalidRequest(f"{_TIMEOUT_HEADER} should be a whole number of milliseconds, 1 to 999999999, given once.")


def path_parameter(name: str) -> dict[str, Any]:
    """A parameter for the OpenAPI document."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _json_body(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": SCHEMA.format(model=model.__name__)}
    return {"required": True, "content": {"application/json": {"schema": schema}}}
