"""A service of intents and replies in this process, with a real bundle, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from models.bundle import Bundle
from models.runtime.onnx import OnnxRuntime
from models.text.tokenizer import Tokenizer
from service.api.gateway import create_app
from service.inference.cache import CachedPredictor
from service.inference.engine import Engine
from service.registry.heads import HeadRegistry
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes

CUSTOMER, AGENT = "customer", "agent"


@dataclass(frozen=True)
class Intents:
    client: httpx.AsyncClient
    folder: Path
    bundle: Bundle
    registry: HeadRegistry

    async def intent(self, inputs: Any, **more: Any) -> httpx.Response:
        return await self.client.post("/v1/intent", json={"inputs": inputs, **more})

    async def replies(self, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/replies", json=body)


@asynccontextmanager
async def serving(bundle: Bundle, folder: Path, metrics: Metrics) -> AsyncIterator[Intents]:
    folder.mkdir()
    task = metrics.task("intent")
    tokenizer = Tokenizer.from_bundle(bundle)
    engine = Engine(bundle, tokenizer, OnnxRuntime(bundle.graph), fakes.LIMITS, task)
    registry = HeadRegistry(bundle, folder)
    app = create_app({"intent": CachedPredictor(engine, 0, task)}, Settings(label_set="letters"), metrics, registry)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        yield Intents(client, folder, bundle, registry)


def turn(speaker: str, text: str) -> dict[str, str]:
    return {"speaker": speaker, "text": text}
