"""Results, item errors and timings as JSON."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import Response

from service.errors import Problem
from service.inference.predictor import Predictor, Timings

SCHEMA = "#/components/schemas/{model}"


def as_list(inputs: Any) -> Sequence[Any]:
    return inputs if isinstance(inputs, list) else [inputs]


def raise_if_all_failed(outcomes: Sequence[object], inputs: Any) -> None:
    """Raises the problem of the first item as that of the request, pointing into the request."""
    problem = outcomes[0]
    if not isinstance(problem, Problem) or not all(isinstance(outcome, Problem) for outcome in outcomes):
        return
    if problem.pointer is not None:
        place = "/inputs/0" if isinstance(inputs, list) else "/inputs"
        problem.pointer = place if isinstance(as_list(inputs)[0], str) else place + problem.pointer
    raise problem


def results_response(predictor: Predictor, results: list[dict[str, Any]], timings: Timings, **more: Any) -> Response:
    """A response from plain values: made by us, so that checking it would only cost time."""
    return json_response(
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


def failed_item(problem: Problem, given: Any) -> dict[str, Any]:
    """A FailedItem."""
    return {"error": error_of(problem), "id": id_of(given)}


def error_of(problem: Problem) -> dict[str, Any]:
    """An ItemError."""
    return {"status": problem.status, "code": problem.code, "title": problem.title, "detail": problem.detail}


def json_response(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem responses of a route, for the OpenAPI document."""
    content = {"application/problem+json": {"schema": {"$ref": SCHEMA.format(model="ProblemBody")}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in statuses}
