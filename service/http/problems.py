"""Problems as application/problem+json, and their handlers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.errors import MethodNotAllowed, NotFound, Problem, from_unknown


def from_http(error: HTTPException) -> Problem:
    """The problem for what the router itself refuses; the router's Allow header is kept."""
    if error.status_code == 404:
        return NotFound("No such route; /docs lists what there is.")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return MethodNotAllowed(f"This route answers {allowed} only.", headers=error.headers)
    return Problem("The request could not be handled.")


async def _respond(request: Request, error: Exception) -> Response:
    problem = error if isinstance(error, Problem) else from_http(error) if isinstance(error, HTTPException) else None
    return (problem or from_unknown(error)).response(request.state.request_id)


def install(app: FastAPI) -> None:
    """Send every problem of `app`, and what its router refuses, through the one handler."""
    handler: Any = _respond
    app.add_exception_handler(Problem, handler)
    app.add_exception_handler(HTTPException, handler)
