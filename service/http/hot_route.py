"""Hot routes: they bypass FastAPI's handling of requests, and have deadlines.

This knows the common shapes of the wire, and no task.
"""

import math
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from service.errors import DeadlineExceeded, InvalidRequest
from service.http.arrival import waited_s
from service.http.openapi import SCHEMA, Operation, request_models
from service.inference.admission import work_budget_s
from service.settings import Settings

_TIMEOUT_HEADER = "X-Request-Timeout-Ms"
_TIMEOUT_NAME = _TIMEOUT_HEADER.lower().encode()
_MILLISECONDS = re.compile(rb"[1-9][0-9]{0,8}")
_TIMEOUT_PARAMETER = {
    "name": _TIMEOUT_HEADER,
    "in": "header",
    "description": "Milliseconds that the caller will wait. If the texts that wait already need longer, the service "
    "answers 429 before any work is done. If only the work itself takes longer, it answers 504.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
}
_PROBLEMS = (400, 408, 413, 415, 422, 429, 500, 502, 503, 504)
"""Statuses of the problems that every hot route can answer."""


class DirectRoute(APIRoute):
    """A route that calls its endpoint with nothing but the request; routing and documentation stay FastAPI's.

    FastAPI's handling resolves dependencies, parses the query and opens two exit stacks for every request.
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
    operation: Operation,
    method: str = "POST",
) -> None:
    """Add a route for a request model and a response model; `operation` names only the problems beyond `_PROBLEMS`."""
    request_models(app).append(request)
    operation = replace(
        operation,
        problems=(*_PROBLEMS, *operation.problems),
        parameters=(*operation.parameters, _TIMEOUT_PARAMETER),
    )
    options = operation.options()
    options["openapi_extra"]["requestBody"] = _json_body(request)
    app.router.add_api_route(
        path, endpoint, methods=[method], response_model=response, route_class_override=DirectRoute, **options
    )


def request_deadline_s(request: Request, settings: Settings) -> float:
    """Return when the answer must be ready, on the monotonic clock.

    The time that the request has waited in HAProxy counts.

    Raises:
        InvalidRequest: The caller's timeout is malformed.
        DeadlineExceeded: The time was over before the request came here.
    """
    timeout_s = min(settings.request_timeout_s, _caller_timeout_s(request))
    remaining_s = timeout_s - waited_s(request, settings)
    if remaining_s <= 0:
        raise DeadlineExceeded("The time ran out while the request waited for a gateway.")
    return time.monotonic() + work_budget_s(remaining_s)


def _caller_timeout_s(request: Request) -> float:
    """Return how long the caller will wait, without end if it does not say."""
    values = [value.strip() for name, value in request.scope["headers"] if name == _TIMEOUT_NAME]
    if not values:
        return math.inf
    if len(values) == 1 and _MILLISECONDS.fullmatch(values[0]):
        return int(values[0]) / 1000
    raise InvalidRequest(f"{_TIMEOUT_HEADER} should be a whole number of milliseconds, 1 to 999999999, given once.")


def _json_body(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": SCHEMA.format(model=model.__name__)}
    return {"required": True, "content": {"application/json": {"schema": schema}}}
