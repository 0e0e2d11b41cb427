"""JSON answers: results, item errors and timings."""

from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import Response

from service.errors import Problem
from service.inference.predictor import Predictor, Timings


def as_list(inputs: Any) -> Sequence[Any]:
    """Return a list of inputs as it is, and a single input as a list."""
    return inputs if isinstance(inputs, list) else [inputs]


def raise_if_all_failed(outcomes: Sequence[object], inputs: Any) -> None:
    """Raise the problem of the first item, with a pointer into the request, if no item has an answer."""
    problem = outcomes[0]
    if not isinstance(problem, Problem) or not all(isinstance(outcome, Problem) for outcome in outcomes):
        return
    if problem.pointer is None:
        raise problem
    pointer = "/inputs/0" if isinstance(inputs, list) else "/inputs"
    raise problem.with_pointer(pointer if isinstance(as_list(inputs)[0], str) else pointer + problem.pointer)


def results_response(predictor: Predictor, results: list[dict[str, Any]], timings: Timings, **more: Any) -> Response:
    """Return an answer of plain values. They are the service's, so no schema checks them again."""
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


def id_of(item: Any) -> str | None:
    """Return the caller's id of an input; a plain string has none."""
    item_id: str | None = None if isinstance(item, str) else item.id
    return item_id


def failed_item(problem: Problem, item: Any) -> dict[str, Any]:
    """Return the `FailedItem` of an input."""
    return {"error": error_of(problem), "id": id_of(item)}


def error_of(problem: Problem) -> dict[str, Any]:
    """Return the `ItemError` of a problem."""
    return {"status": problem.status, "code": problem.code, "title": problem.title, "detail": problem.detail}


def json_response(body: dict[str, Any]) -> Response:
    """Return plain values as an answer."""
    return Response(orjson.dumps(body), media_type="application/json")


def milliseconds(seconds: float) -> float:
    """Return seconds as milliseconds with three decimals."""
    return round(seconds * 1000, 3)
