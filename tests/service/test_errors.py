from __future__ import annotations

import json
import pickle
from collections.abc import Iterator

import pytest
from starlette.exceptions import HTTPException

from service import errors
from service.errors import CatalogueBusy, CatalogueUnusable, NotReady, Overloaded, Problem
from service.http.problems import from_http, render
from service.schemas.wire import ProblemBody


def leaves(kind: type[Problem] = Problem) -> Iterator[type[Problem]]:
    yield kind
    for below in kind.__subclasses__():
        yield from leaves(below)


STABLE = {
    ("malformed_json", 400),
    ("malformed_body", 400),
    ("not_found", 404),
    ("method_not_allowed", 405),
    ("body_timeout", 408),
    ("catalogue_outdated", 409),
    ("catalogue_read_only", 409),
    ("body_too_large", 413),
    ("explanation_too_large", 413),
    ("catalogue_full", 413),
    ("target_too_long", 414),
    ("unsupported_media_type", 415),
    ("invalid_request", 422),
    ("empty_text", 422),
    ("entity_not_found", 422),
    ("text_too_long", 422),
    ("unknown_item", 422),
    ("overloaded", 429),
    ("headers_too_large", 431),
    ("internal_error", 500),
    ("inference_failed", 500),
    ("unknown_method", 501),
    ("replica_lost", 502),
    ("not_ready", 503),
    ("catalogue_busy", 503),
    ("catalogue_unusable", 503),
    ("deadline_exceeded", 504),
    ("disk_full", 507),
}


def test_codes_and_statuses_are_stable() -> None:
    assert {(kind.code, kind.status) for kind in leaves()} == STABLE


def test_a_problem_is_an_rfc_9457_document() -> None:
    response = render(errors.InvalidRequest("Wrong.", pointer="/inputs"), "r-1")
    assert response.headers["content-type"] == "application/problem+json"
    ProblemBody.model_validate_json(bytes(response.body))
    assert json.loads(bytes(response.body)) == {
        "type": "urn:heed:problem:invalid_request",
        "title": "Invalid request",
        "status": 422,
        "detail": "Wrong.",
        "instance": "urn:heed:request:r-1",
        "code": "invalid_request",
        "pointer": "/inputs",
    }


@pytest.mark.parametrize("kind", [Overloaded, NotReady])
@pytest.mark.parametrize(("retry_after_s", "header"), [(0.0, "1"), (1.2, "2"), (60.0, "60")])
def test_retry_after_is_in_whole_seconds(
    kind: type[Overloaded] | type[NotReady], retry_after_s: float, header: str
) -> None:
    assert render(kind("Later.", retry_after_s=retry_after_s), "r").headers["retry-after"] == header


def test_the_problem_of_an_unknown_error_hides_its_message() -> None:
    problem = errors.from_unknown(ValueError("/etc/passwd"))
    assert (problem.status, problem.code) == (500, "internal_error")
    assert "passwd" not in problem.detail


def test_another_refusal_of_the_router_is_opaque() -> None:
    assert from_http(HTTPException(401, "secret")).detail == "The request could not be handled."


@pytest.mark.parametrize("kind", [Problem, *(kind for kind in leaves() if not kind.__subclasses__())])
def test_a_problem_is_the_same_after_pickling(kind: type[Problem]) -> None:
    if issubclass(kind, Overloaded | NotReady | CatalogueBusy | CatalogueUnusable):
        made: Problem = kind("Wait.", retry_after_s=7)
    else:
        made = kind("No.", pointer="/text")
    crossed = pickle.loads(pickle.dumps(made))
    assert type(crossed) is kind
    assert (crossed.detail, crossed.pointer, crossed.headers) == (made.detail, made.pointer, made.headers)
    assert crossed.args == made.args
