"""A service of all three tasks in this process, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import httpx
from fastapi import FastAPI

from models.bundle import SHIPPED_BUNDLES, load_bundle
from models.ranking.bundle_files import load_recommender
from service.api.gateway import create_app
from service.api.recommend import Rankings
from service.explanation.worker import ExplainableModel, ExplanationWorker
from service.inference.assembly import open_engine
from service.inference.ranking_engine import TASK, RankingEngine
from service.registry.catalogues import CatalogueRegistry
from service.registry.heads import HeadRegistry
from service.settings import Settings
from service.telemetry.metrics import Metrics


def app_without_models(metrics: Metrics) -> FastAPI:
    """Return an application with every route, for its OpenAPI document: it can answer no request."""
    predictors = {task: Mock() for task in SHIPPED_BUNDLES}
    return create_app(predictors, Settings(), metrics, Mock(), Mock(), Rankings(Mock(), Mock()))


def _whole_app(bundles: Mapping[str, Path], data_dir: Path, metrics: Metrics) -> FastAPI:
    """Return an application with every route. Its lifespan starts the models."""
    settings = Settings(data_dir=data_dir, request_timeout_s=60.0)
    engines = {task: open_engine(load_bundle(path), settings, metrics.task(task)) for task, path in bundles.items()}
    for task, engine in engines.items():
        metrics.set_bundle(task, engine.bundle.name, engine.bundle.version, engine.bundle.digest)
    recommender = load_recommender(engines["recommend"].bundle)
    rankings = Rankings(
        RankingEngine(recommender, metrics.task(TASK)),
        CatalogueRegistry(engines["recommend"].bundle, recommender, data_dir),
    )
    models = {task: ExplainableModel(engine.bundle, engine.tokenizer) for task, engine in engines.items()}
    explanations = ExplanationWorker(models, lambda: False)
    heads = HeadRegistry(engines["intent"].bundle, data_dir)
    return create_app(engines, settings, metrics, heads, explanations, rankings)


@asynccontextmanager
async def whole_service(
    bundles: Mapping[str, Path], data_dir: Path, metrics: Metrics
) -> AsyncIterator[httpx.AsyncClient]:
    """Run a service over the bundles."""
    app = _whole_app(bundles, data_dir, metrics)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        yield client
