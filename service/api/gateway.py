"""The HTTP surface: routes of a few lines over predictors that are given.

Each task's routes are in a file of its own, `sentiment` and `intent`; here they come together, and with them what an
operator asks. Problems become answers in `errors`, counting happens in `middleware`. Knows nothing of Ray or of where a
model runs.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

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
from service.http import problems
from service.http.middleware import RequestMiddleware
from service.http.openapi import document, package_version
from service.http.static import add_console
from service.inference.predictor import Predictor
from service.inference.ranking_engine import RankingEngine
from service.registry.catalogues import CatalogueRegistry
from service.registry.heads import HeadRegistry
from service.settings import Settings
from service.telemetry.metrics import Metrics


def create_app(
    predictors: Mapping[str, Predictor],
    settings: Settings,
    metrics: Metrics,
    shelf: HeadRegistry | None = None,
    explaining: ExplanationWorker | None = None,
    rankings: Rankings | None = None,
) -> FastAPI:
    """The application over predictors by task; its lifespan starts and stops them and what they have beside them.

    Intent has a shelf, recommend has rankings; `explaining` explains what those predictors of texts answer whose models
    are in this process, and rankings.
    """
    ranking = [] if rankings is None else [rankings.engine]
    beside: list[HeadRegistry | RankingEngine | CatalogueRegistry] = [] if shelf is None else [shelf]
    if rankings is not None:
        beside += [rankings.engine, rankings.catalogues]
    vital: list[Predictor | RankingEngine] = [*predictors.values(), *ranking]

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        for predictor in predictors.values():
            await predictor.start()
        for one in beside:
            await one.start()
        yield
        if explaining is not None:
            await explaining.stop()
        for one in reversed(beside):
            await one.stop()
        for predictor in predictors.values():
            await predictor.stop()

    app = FastAPIOffline(
        redoc_url=None,
        title="Heed",
        summary="Sentiment, intents, replies and recommendations, English and Chinese",
        version=package_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        swagger_ui_parameters={"validatorUrl": None},
    )
    problems.install(app)
    app.add_middleware(RequestMiddleware, metrics=metrics)
    if "sentiment" in predictors:
        add_sentiment(app, predictors["sentiment"], settings)
        add_explain_sentiment(app, predictors["sentiment"], explaining, settings)
    if shelf is not None:
        add_intent(app, predictors["intent"], shelf, settings)
        add_replies(app, predictors["intent"], shelf, settings)
        add_explain_intent(app, predictors["intent"], shelf, explaining, settings)
        add_explain_replies(app, predictors["intent"], shelf, explaining, settings)
    if rankings is not None:
        add_recommend(app, predictors["recommend"], rankings, settings)
        add_explain_recommend(app, predictors["recommend"], rankings, explaining, settings)
        add_catalogues(app, predictors["recommend"], rankings.catalogues, settings)
    add_operations(app, predictors, settings, metrics, shelf, vital)
    add_console(app)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]
    return app
