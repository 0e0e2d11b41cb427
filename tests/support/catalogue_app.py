"""A service of catalogues in this process, with a real bundle, and a client that edits them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from models.bundle import Bundle
from models.catalogue.items import CatalogueLimits
from models.ranking.bundle_files import load_recommender
from models.runtime.onnx import OnnxRuntime
from models.text.tokenizer import Tokenizer
from service.api.gateway import create_app
from service.api.recommend import Rankings
from service.inference.cache import CachedPredictor
from service.inference.engine import Engine
from service.inference.ranking_engine import TASK, RankingEngine
from service.registry.catalogues import CatalogueRegistry
from service.schemas.catalogue import CatalogueEdited
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes

ITEM = {"item_id": "1", "text": "abc"}


@dataclass(frozen=True)
class Shop:
    client: httpx.AsyncClient
    catalogues: CatalogueRegistry
    folder: Path
    engine: Engine

    async def put(self, name: str, items: Any = (), remove: Any = ()) -> httpx.Response:
        return await self.client.put(
            f"/v1/catalogues/{name}/items", json={"items": list(items), "remove": list(remove)}
        )

    async def outcomes(self, name: str, items: Any = (), remove: Any = ()) -> list[str]:
        answer = await self.put(name, items, remove)
        assert answer.status_code == 200, answer.text
        CatalogueEdited.model_validate_json(answer.content)
        return [
            result["outcome"] if "outcome" in result else result["error"]["code"] for result in answer.json()["results"]
        ]

    async def texts(self, name: str) -> dict[str, str]:
        snapshot = await self.catalogues.snapshot(name)
        return {item_id: snapshot.texts[row] for item_id, row in snapshot.row_by_id.items()}


@asynccontextmanager
async def serving(bundle: Bundle, data_dir: Path | None, metrics: Metrics, **settings: Any) -> AsyncIterator[Shop]:
    task = metrics.task("recommend")
    tokenizer = Tokenizer.from_bundle(bundle)
    engine = Engine(bundle, tokenizer, OnnxRuntime(bundle.graph), fakes.LIMITS, task)
    recommender = load_recommender(bundle)
    configured = Settings(**settings)
    limits = CatalogueLimits(configured.max_catalogue_items, configured.max_catalogue_bytes)
    catalogues = CatalogueRegistry(bundle, recommender, data_dir, limits=limits)
    app = create_app(
        {"recommend": CachedPredictor(engine, 0, task)},
        configured,
        metrics,
        rankings=Rankings(RankingEngine(recommender, metrics.task(TASK)), catalogues),
    )
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        yield Shop(client, catalogues, (data_dir or Path()) / "catalogues", engine)
