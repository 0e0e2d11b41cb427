"""The running service against its OpenAPI document: it answers generated requests as documented."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, CheckContext, Response
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from tests.support.local_service import Service


def no_fault_of_the_service(ctx: CheckContext, response: Response, case: Case[Any]) -> None:
    """Allow 504, because a generated X-Request-Timeout-Ms may be shorter than any answer takes."""
    if response.status_code != 504:
        not_a_server_error(ctx, response, case)


CHECKS = [
    no_fault_of_the_service,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]


LIMITS = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def test_answers_are_as_documented(service: Service) -> None:
    document = schemathesis.openapi.from_url(f"http://127.0.0.1:{service.port}/openapi.json")
    operations = [result.ok() for result in document.get_all_operations() if isinstance(result, Ok)]
    assert "POST /v1/sentiment" in {operation.label for operation in operations}
    for operation in operations:

        @LIMITS
        @given(case=operation.as_strategy())
        def holds(case: Case[Any]) -> None:
            case.call_and_validate(checks=CHECKS, timeout=30)

        holds()
