"""A sentiment service in this process with a fake model, a client of it, and the check of its problems."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from service.api.gateway import create_app
from service.inference.cache import CachedPredictor
from service.inference.engine import Engine
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes

JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Service:
    app: FastAPI
    client: httpx.AsyncClient
    engine: Engine
    runtime: fakes.FakeRuntime
    metrics: Metrics

    async def ask(self, inputs: Any, **more: Any) -> httpx.Response:
        return await self.client.post("/v1/sentiment", json={"inputs": inputs, **more})

    async def send(self, body: Any, headers: dict[str, str] = JSON) -> httpx.Response:
        return await self.client.post("/v1/sentiment", content=body, headers=headers)

    async def held(self) -> asyncio.Task[httpx.Response]:
        """Close the gate and let a request block the model."""
        self.runtime.gate.clear()
        self.runtime.entered.clear()
        first = asyncio.ensure_future(self.ask("good"))
        assert await asyncio.to_thread(self.runtime.entered.wait, 60)
        return first


@asynccontextmanager
async def serving(
    folder: Path, metrics: Metrics, queue_tokens: int = 65_536, **settings: Any
) -> AsyncIterator[Service]:
    runtime = fakes.FakeRuntime()
    limits = dataclasses.replace(fakes.LIMITS, queue_tokens=queue_tokens)
    engine = fakes.make_engine(folder, metrics, runtime, limits)
    configured = Settings(**settings)
    cache = CachedPredictor(engine, configured.cache_entries, metrics.task("sentiment"))
    app = create_app({"sentiment": cache}, configured, metrics)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        yield Service(app, client, engine, runtime, metrics)
        runtime.gate.set()


def assert_problem(response: httpx.Response, status: int, code: str, pointer: str | None = None) -> None:
    """Check a refusal: all of them are problems with the same fields."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    request_id = response.headers["x-request-id"]
    body = response.json()
    detail = body.pop("detail")
    title = body.pop("title")
    expected = {
        "type": f"urn:heed:problem:{code}",
        "status": status,
        "instance": f"urn:heed:request:{request_id}",
        "code": code,
    }
    assert body == expected | ({} if pointer is None else {"pointer": pointer})
    assert title
    assert detail.endswith(".")
    assert not re.search(r"Traceback|File \"|\.py\b|/home/|/tmp/|/usr/", response.text)
    assert ("retry-after" in response.headers) == (status in (429, 503))
    if status in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
