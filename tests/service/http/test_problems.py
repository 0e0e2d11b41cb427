"""A route may render its problems in a shape of its own; every other route answers problem+json."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from starlette.responses import JSONResponse

from service.errors import Overloaded, Problem
from service.http import problems
from service.http.hot_route import DirectRoute
from service.http.middleware import RequestMiddleware
from service.telemetry.metrics import Metrics

pytestmark = pytest.mark.anyio


class DialectRoute(DirectRoute):
    """A route of a dialect whose errors are `{"error": ...}`."""

    @staticmethod
    def render_problem(problem: Problem, request_id: str) -> Response:
        return JSONResponse({"error": problem.code, "id": request_id}, problem.status, problem.headers)


async def overloaded(request: Request) -> Response:
    raise Overloaded("Later.", retry_after_s=3)


async def failing(request: Request) -> Response:
    raise ValueError("a fault")


@pytest.fixture
def app(metrics: Metrics) -> FastAPI:
    app = FastAPI()
    problems.install(app)
    app.add_middleware(RequestMiddleware, metrics=metrics)
    dialect: Any = DialectRoute
    for path, endpoint in (("/overloaded", overloaded), ("/failing", failing)):
        app.router.add_api_route(f"/dialect{path}", endpoint, methods=["POST"], route_class_override=dialect)
        app.router.add_api_route(path, endpoint, methods=["POST"], route_class_override=DirectRoute)
    return app


@pytest.mark.parametrize(
    ("path", "status", "code"), [("/overloaded", 429, "overloaded"), ("/failing", 500, "internal_error")]
)
async def test_a_dialect_renders_its_problems_and_faults(app: FastAPI, path: str, status: int, code: str) -> None:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://heed") as client:
        own = await client.post(f"/dialect{path}", headers={"X-Request-ID": "r-1"})
        usual = await client.post(path, headers={"X-Request-ID": "r-1"})
    assert (own.status_code, own.json()) == (status, {"error": code, "id": "r-1"})
    assert own.headers.get("Retry-After") == usual.headers.get("Retry-After")
    assert (usual.status_code, usual.json()["code"]) == (status, code)
    assert usual.headers["Content-Type"] == "application/problem+json"
