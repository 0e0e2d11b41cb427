"""JSON answers: results, item errors and timings."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import orjson
from fastapi import Response

from models.text.language import OTHER
from service.errors import Problem
from service.http.validation import InvalidItem
from service.inference.predictor import Predictor, Timings

Outcome = TypeVar("Outcome")


def as_list(inputs: Any) -> Sequence[Any]:
    """Return a list of inputs as it is, and a single input as a list."""
    return inputs if isinstance(inputs, list) else [inputs]


def valid_items(inputs: Iterable[Any]) -> list[Any]:
    """Return the inputs that fit their schema."""
    return [item for item in inputs if not isinstance(item, InvalidItem)]


def fill_in(inputs: Sequence[Any], outcomes: Sequence[Outcome | Problem]) -> Sequence[Outcome | Problem]:
    """Return an outcome for each input: `outcomes` are those of the valid ones, and the others have their problem."""
    if len(outcomes) == len(inputs):
        return outcomes
    remaining = iter(outcomes)
    return [item.problem if isinstance(item, InvalidItem) else next(remaining) for item in inputs]


def settle_outcomes(inputs: Any, outcomes: Sequence[Outcome | Problem]) -> Sequence[Outcome | Problem]:
    """Return an outcome for each input, as `fill_in` does, with the pointers of problems into the request.

    Raise the problem of the first input if no input has an answer.
    """
    items = as_list(inputs)
    outcomes = fill_in(items, outcomes)
    for outcome in outcomes:
        if isinstance(outcome, Problem):
            break
    else:
        return outcomes
    pointers = (f"/inputs/{index}" if isinstance(inputs, list) else "/inputs" for index in range(len(items)))
    located = [_locate(*fields) for fields in zip(outcomes, items, pointers, strict=True)]
    first = located[0]
    if isinstance(first, Problem) and all(isinstance(outcome, Problem) for outcome in located):
        raise first
    return located


def _locate(outcome: Outcome | Problem, item: Any, pointer: str) -> Outcome | Problem:
    """Return an outcome; if it is a problem of the item at a pointer, with a pointer into the request."""
    if not isinstance(outcome, Problem) or outcome.pointer is None:
        return outcome
    return outcome.with_pointer(pointer if isinstance(item, str) else pointer + outcome.pointer)


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


def language_fields(language: str) -> dict[str, Any]:
    """Return the `LanguageFields` of a result."""
    return {"language": language, **language_mark([language])}


def language_mark(languages: Iterable[str]) -> dict[str, Any]:
    """Return the field that marks a result if one of its texts is in a language that no model knows."""
    return {"unsupported_language": True} if OTHER in languages else {}


def failed_item(problem: Problem, item: Any) -> dict[str, Any]:
    """Return the `FailedItem` of an input."""
    return {"error": error_of(problem), "id": id_of(item)}


def error_of(problem: Problem) -> dict[str, Any]:
    """Return the `ItemError` of a problem, with its pointer if it has one."""
    error = {"status": problem.status, "code": problem.code, "title": problem.title, "detail": problem.detail}
    return error if problem.pointer is None else error | {"pointer": problem.pointer}


def json_response(body: dict[str, Any]) -> Response:
    """Return plain values as an answer."""
    return Response(orjson.dumps(body), media_type="application/json")


def milliseconds(seconds: float) -> float:
    """Return seconds as milliseconds with three decimals."""
    return round(seconds * 1000, 3)
