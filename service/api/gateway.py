"""The HTTP application: the routes of all tasks, and those of operators.

Each route is in a module of this room. `service.http.problems` answers problems, and `service.http.middleware` counts
requests. This knows neither Ray nor where a model runs.
"""

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from service.api.catalogues import add_catalogues
from service.api.explain_dialogues import add_explain_intent, add_explain_replies
from service.api.explain_recommend import add_explain_recommend
from service.api.explain_sentiment import add_explain_sentiment
from service.api.intent import add_intent
from service.api.operations import add_operations
from service.api.recommend import Rankings, add_recommend
from service.api.replies import add_replies
from service.api.sentiment import add_sentiment
from service.explanation.worker import ExplanationWorker
from service.fairness.byte_budget import ByteBudget
from service.http import problems
from service.http.middleware import RequestMiddleware
from service.http.openapi import document, package_version
from service.http.static import add_console
from service.inference.predictor import Predictor
from service.inference.ranking_engine import RankingEngine
from service.registry.catalogues import CatalogueRegistry
from service.registry.heads import HeadRegistry
from service.settings import Settings
from service.telemetry.access_log import AccessLog
from service.telemetry.logs import log_failed_start, log_loop_faults
from service.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

TAGS = {
    "Sentiment": "Sentiment of English and Chinese texts, as a whole or towards an entity.",
    "Intents and replies": "What a customer wants in a dialogue, and which reply fits it.",
    "Recommendations": "Items of a catalogue, ranked for the history of a user.",
    "Catalogues": "The items that recommendations choose from.",
    "Explanations": "The words, turns or items behind an answer.",
    "Operations": "Models, health and metrics, for operators.",
}
"""Groups of routes in the OpenAPI document, with their descriptions."""


def create_app(
    predictors: Mapping[str, Predictor],
    settings: Settings,
    metrics: Metrics,
    registry: HeadRegistry | None = None,
    explanations: ExplanationWorker | None = None,
    rankings: Rankings | None = None,
    access_log: AccessLog | None = None,
) -> FastAPI:
    """Return the application for predictors by task. Its lifespan starts and stops them and their background services.

    Intent needs a registry of heads, and recommend needs rankings. `explanations` explains rankings, and the answers of
    models in this process. `access_log` gets a record of each request.
    """
    background_services: list[HeadRegistry | RankingEngine | CatalogueRegistry] = []
    health_checked: list[Predictor | RankingEngine] = [*predictors.values()]
    if registry is not None:
        background_services.append(registry)
    if rankings is not None:
        background_services += [rankings.engine, rankings.catalogues]
        health_checked.append(rankings.engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        log_loop_faults()
        with log_failed_start("gateway"):
            for predictor in predictors.values():
                await _start(predictor)
            for service in background_services:
                await service.start()
        _log.info("gateway ready", tasks=list(predictors))
        yield
        _log.info("gateway stopping")
        if explanations is not None:
            await explanations.stop()
        for service in reversed(background_services):
            await service.stop()
        for predictor in predictors.values():
            await predictor.stop()
        _log.info("gateway stopped")

    app = FastAPIOffline(
        redoc_url=None,
        title="Heed",
        summary="Sentiment, intents, replies and recommendations, English and Chinese",
        openapi_tags=[{"name": name, "description": description} for name, description in TAGS.items()],
        version=package_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        swagger_ui_parameters={"validatorUrl": None},
    )
    app.state.body_budget = ByteBudget(settings.max_bodies_bytes, settings.max_client_bodies_bytes)
    problems.install(app)
    app.add_middleware(RequestMiddleware, metrics=metrics, access_log=access_log)
    _add_tasks(app, predictors, settings, registry, explanations, rankings)
    add_operations(app, predictors, settings, metrics, registry, health_checked)
    add_console(app)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app


async def _start(predictor: Predictor) -> None:
    started_s = time.monotonic()
    await predictor.start()
    if not predictor.ready:  # a remote model, whose replicas log that they have loaded it
        return
    bundle, seconds = predictor.bundle, round(time.monotonic() - started_s, 2)
    _log.info("model loaded", task=bundle.task.name, model=bundle.name, version=bundle.version, seconds=seconds)


def _add_tasks(
    app: FastAPI,
    predictors: Mapping[str, Predictor],
    settings: Settings,
    registry: HeadRegistry | None,
    explanations: ExplanationWorker | None,
    rankings: Rankings | None,
) -> None:
    if "sentiment" in predictors:
        add_sentiment(app, predictors["sentiment"], settings)
        add_explain_sentiment(app, predictors["sentiment"], explanations, settings)
    if registry is not None:
        add_intent(app, predictors["intent"], registry, settings)
        add_replies(app, predictors["intent"], registry, settings)
        add_explain_intent(app, predictors["intent"], registry, explanations, settings)
        add_explain_replies(app, predictors["intent"], registry, explanations, settings)
    if rankings is not None:
        add_recommend(app, predictors["recommend"], rankings, settings)
        add_explain_recommend(app, predictors["recommend"], rankings, explanations, settings)
        add_catalogues(app, predictors["recommend"], rankings.catalogues, settings)
