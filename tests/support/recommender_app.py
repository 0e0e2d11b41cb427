"""A recommender in this process, with a real tiny bundle and its catalogue, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from models.bundle import Bundle
from models.ranking.bundle_files import load_recommender
from models.ranking.recommender import Recommender
from models.runtime.onnx import OnnxRuntime
from models.text.tokenizer import Tokenizer
from service.api.gateway import create_app
from service.api.recommend import Rankings
from service.explanation.worker import ExplanationWorker
from service.inference.cache import CachedPredictor
from service.inference.engine import Engine
from service.inference.ranking_engine import TASK, RankingEngine
from service.registry.catalogues import CatalogueRegistry
from service.schemas.recommend import RecommendResponse
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes

BOUGHT = {"item_id": "item-a3", "event": "purchase"}


@dataclass(frozen=True)
class Shop:
    client: httpx.AsyncClient
    metrics: Metrics
    ranking_engine: RankingEngine
    catalogues: CatalogueRegistry
    folder: Path  # of the service's data

    async def send(self, inputs: Any) -> httpx.Response:
        return await self.client.post("/v1/recommend", json={"inputs": inputs})

    async def ask(self, history: list[Any], **more: Any) -> dict[str, Any]:
        """Return the result of a single user."""
        answer = await self.send({"history": history, **more})
        assert answer.status_code == 200, answer.text
        RecommendResponse.model_validate_json(answer.content)
        (result,) = answer.json()["results"]
        return dict(result)


@asynccontextmanager
async def serving(
    bundle: Bundle, folder: Path, metrics: Metrics, kind: type[Recommender] = Recommender
) -> AsyncIterator[Shop]:
    task = metrics.task("recommend")
    tokenizer = Tokenizer.from_bundle(bundle)
    engine = Engine(bundle, tokenizer, OnnxRuntime(bundle.graph), fakes.LIMITS, task)
    recommender = load_recommender(bundle)
    recommender.__class__ = kind
    ranking_engine = RankingEngine(recommender, metrics.task(TASK))
    catalogues = CatalogueRegistry(bundle, recommender, folder)
    predictors = {"recommend": CachedPredictor(engine, 0, task)}
    explanations = ExplanationWorker({}, lambda: engine.busy or ranking_engine.busy)
    app = create_app(predictors, Settings(), metrics, None, explanations, Rankings(ranking_engine, catalogues))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        yield Shop(client, metrics, ranking_engine, catalogues, folder)


def event(item_id: str, kind: str = "purchase", days_ago: float | None = None, **more: Any) -> dict[str, Any]:
    """Return an event on an item of the catalogue."""
    at = {} if days_ago is None else {"at": (datetime.now(UTC) - timedelta(days=days_ago)).isoformat()}
    return {"item_id": item_id, "event": kind, **at, **more}


def ids(result: dict[str, Any]) -> list[str | None]:
    return [item["item_id"] for item in result["items"]]


def scores(result: dict[str, Any]) -> dict[str, float]:
    return {item["item_id"]: item["score"] for item in result["items"]}
