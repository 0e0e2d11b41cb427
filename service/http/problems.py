"""Exception handlers that answer problems as application/problem+json."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from service.errors import MethodNotAllowed, NotFound, Problem, from_unknown


def from_http(error: HTTPException) -> Problem:
    """Return the problem for a refusal of the router, with the router's Allow header."""
    if error.status_code == 404:
        return NotFound("No such route; /docs lists what there is.")
    if error.status_code == 405:
        methods = (error.headers or {}).get("Allow", "").split(", ")
        if "GET" in methods:
            methods = sorted({*methods, "HEAD"})
        allowed = ", ".join(methods)
        return MethodNotAllowed(f"This route answers {allowed} only.", headers={"Allow": allowed})
    return Problem("The request could not be handled.")


def render(problem: Problem, request_id: str) -> Response:
    """Render a `ProblemBody` from plain values, because an overloaded service writes more problems than answers."""
    body = {
        "type": f"urn:heed:problem:{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "instance": f"urn:heed:request:{request_id}",
        "code": problem.code,
    }
    if problem.pointer is not None:
        body["pointer"] = problem.pointer
    return Response(orjson.dumps(body), problem.status, problem.headers, media_type="application/problem+json")


def renderer(scope: Scope) -> Callable[[Problem, str], Response]:
    """Return how the route of a request renders problems: its own `render_problem`, or `render`.

    A dialect whose clients expect errors in another shape sets `render_problem` on the class of its routes.
    """
    render_problem: Callable[[Problem, str], Response] = getattr(scope.get("route"), "render_problem", render)
    return render_problem


async def _respond(request: Request, error: Exception) -> Response:
    """Handle a problem, a refusal of the router, or a fault."""
    problem = error if isinstance(error, Problem) else from_http(error) if isinstance(error, HTTPException) else None
    problem = problem or from_unknown(error)
    request.state.problem_code = problem.code  # for the access log
    return renderer(request.scope)(problem, request.state.request_id)


def install(app: FastAPI) -> None:
    """Install the handler for every problem of `app` and for refusals of its router."""
    handler: Any = _respond
    app.add_exception_handler(Problem, handler)
    app.add_exception_handler(HTTPException, handler)
