"""A service that explains sentiment in this process, with a real bundle, and a client of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import Bundle
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch
from models.text.tokenizer import Tokenizer
from service.api.gateway import create_app
from service.explanation.worker import ExplainableModel, ExplanationWorker
from service.inference.cache import CachedPredictor
from service.inference.engine import Engine
from service.schemas.explain import ExplainResponse
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes

PATH = "/v1/explain/sentiment"


@dataclass(frozen=True)
class Explains:
    client: httpx.AsyncClient
    explanations: ExplanationWorker
    engine: Engine

    async def ask(self, inputs: Any, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        return await self.client.post(PATH, json={"inputs": inputs, **more}, headers=headers)

    async def label(self, inputs: Any) -> str:
        answer = await self.client.post("/v1/sentiment", json={"inputs": inputs})
        return str(answer.json()["results"][0]["label"])


@asynccontextmanager
async def serving(bundle: Bundle, metrics: Metrics) -> AsyncIterator[Explains]:
    task = metrics.task("sentiment")
    tokenizer = Tokenizer.from_bundle(bundle)
    engine = Engine(bundle, tokenizer, OnnxRuntime(bundle.graph), fakes.LIMITS, task)
    explanations = ExplanationWorker({"sentiment": ExplainableModel(bundle, tokenizer)}, lambda: engine.busy)
    app = create_app({"sentiment": CachedPredictor(engine, 0, task)}, Settings(), metrics, None, explanations)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        yield Explains(client, explanations, engine)


class Gate:
    """A gate that stops the thread of explanations at its next step, like a slow model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.entered, self.runs = threading.Event(), threading.Event(), 0
        run = OnnxRuntime.run

        def held(runtime: OnnxRuntime, batch: Batch) -> NDArray[np.float32]:
            if threading.current_thread().name.startswith("explain"):
                self.runs += 1
                self.entered.set()
                self.open.wait(60)
            return run(runtime, batch)

        monkeypatch.setattr(OnnxRuntime, "run", held)

    async def holds(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 60)


def shown(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    ExplainResponse.model_validate_json(answer.content)
    results: list[dict[str, Any]] = answer.json()["results"]
    return results
