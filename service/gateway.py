"""The HTTP surface: routes of a few lines over predictors that are given.

Each task's routes are in a file of its own, `sentiment` and `intent`; here they come together, and with them what an
operator asks. Problems become answers in `errors`, counting happens in `middleware`. Knows nothing of Ray or of where a
model runs.
"""

# No `from __future__ import annotations` here: FastAPI could not resolve annotations that name a local dependency.

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse
from fastapi_offline import FastAPIOffline
from pydantic.json_schema import models_json_schema

from models.bundle import Bundle
from service import errors
from service.catalogue_routes import add_catalogues
from service.catalogues import Catalogues
from service.console import add_console
from service.errors import NotReady
from service.explain import add_explain
from service.explain_dialogues import add_explain_intent, add_explain_replies
from service.explain_recommend import add_explain_recommend
from service.explaining import Explaining
from service.intent import add_intent, add_replies
from service.metrics import CONTENT_TYPE, Metrics
from service.middleware import Envelope
from service.predictor import Predictor
from service.recommend import add_recommend
from service.recommending import Recommending
from service.routes import SCHEMA, problems
from service.schemas import (
    MAX_INPUTS,
    Health,
    Limits,
    MetricInfo,
    ModelInfo,
    ModelList,
    ProblemBody,
    SentimentRequest,
)
from service.schemas_catalogue import CatalogueEdit
from service.schemas_explain import ExplainIntentRequest, ExplainRepliesRequest, ExplainRequest
from service.schemas_explain_recommend import ExplainRecommendRequest
from service.schemas_intent import IntentRequest, RepliesRequest
from service.schemas_recommend import RecommendRequest
from service.sentiment import add_sentiment
from service.settings import Settings
from service.shelf import Shelf

_RETRY_S = 2.0


def create_app(
    predictors: Mapping[str, Predictor],
    settings: Settings,
    metrics: Metrics,
    shelf: Shelf | None = None,
    explaining: Explaining | None = None,
    recommending: Recommending | None = None,
    catalogues: Catalogues | None = None,
) -> FastAPI:
    """The application over predictors by task; its lifespan starts and stops them and what they have beside them.

    Intent has a shelf, recommend has rankings and catalogues; `explaining` explains what those predictors of texts
    answer whose models are in this process, and rankings.
    """
    beside = [one for one in (shelf, recommending, catalogues) if one is not None]
    vital: list[Predictor | Recommending] = [*predictors.values()]
    if recommending is not None:
        vital.append(recommending)

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
        version=_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        swagger_ui_parameters={"validatorUrl": None},
    )
    errors.install(app)
    app.add_middleware(Envelope, metrics=metrics)
    if "sentiment" in predictors:
        add_sentiment(app, predictors["sentiment"], settings)
        add_explain(app, predictors["sentiment"], explaining, settings)
    if shelf is not None:
        add_intent(app, predictors["intent"], shelf, settings)
        add_replies(app, predictors["intent"], shelf, settings)
        add_explain_intent(app, predictors["intent"], shelf, explaining, settings)
        add_explain_replies(app, predictors["intent"], shelf, explaining, settings)
    if recommending is not None and catalogues is not None:
        add_recommend(app, predictors["recommend"], recommending, catalogues, settings)
        add_explain_recommend(app, predictors["recommend"], recommending, catalogues, explaining, settings)
        add_catalogues(app, predictors["recommend"], catalogues, settings)
    _add_operations(app, predictors, settings, metrics, shelf, vital)
    add_console(app)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


def _add_operations(
    app: FastAPI,
    predictors: Mapping[str, Predictor],
    settings: Settings,
    metrics: Metrics,
    shelf: Shelf | None,
    vital: Sequence[Predictor | Recommending],
) -> None:
    @app.get("/v1/models")
    async def models() -> ModelList:
        """The models that are served: labels, limits, digest, and the figures they were measured at."""
        return ModelList(models=[_model_info(predictor.bundle, settings, shelf) for predictor in predictors.values()])

    @app.get("/healthz", responses=problems(503))
    async def healthz() -> Health:
        """Alive; 503 when this process can no longer answer and should be replaced."""
        if not all(one.healthy for one in vital):
            raise NotReady("The inference thread has died.", retry_after_s=_RETRY_S)
        return Health(status="ok")

    @app.get("/readyz", responses=problems(503))
    async def readyz() -> Health:
        """Models loaded and warm; 503 before that, and while shutting down."""
        if not all(predictor.ready for predictor in predictors.values()):
            raise NotReady("The models are not loaded and warm.", retry_after_s=_RETRY_S)
        return Health(status="ok")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Prometheus text, summed over all replicas of this node."""
        return Response(metrics.render(), media_type=CONTENT_TYPE)


def _model_info(bundle: Bundle, settings: Settings, shelf: Shelf | None) -> ModelInfo:
    on_shelf = shelf if bundle.task.name == "intent" else None
    return ModelInfo(
        name=bundle.name,
        version=bundle.version,
        task=bundle.task.name,
        labels=list(bundle.task.labels),
        label_sets={} if on_shelf is None else {name: list(head.labels) for name, head in on_shelf.heads.items()},
        reply_sets=[] if on_shelf is None else sorted(on_shelf.reply_sets),
        languages=list(bundle.languages),
        digest=bundle.digest,
        base=bundle.base,
        limits=Limits(max_tokens=bundle.max_tokens, max_inputs=MAX_INPUTS, max_body_bytes=settings.max_body_bytes),
        metrics=[
            MetricInfo(dataset=m.dataset, language=m.language, name=m.name, value=m.value, command=m.command)
            for m in bundle.metrics
        ],
    )


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the schemas that FastAPI cannot see because bodies and problems are ours."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        _, unseen = models_json_schema(
            [
                (SentimentRequest, "validation"),
                (ExplainRequest, "validation"),
                (ExplainIntentRequest, "validation"),
                (ExplainRepliesRequest, "validation"),
                (IntentRequest, "validation"),
                (RepliesRequest, "validation"),
                (RecommendRequest, "validation"),
                (ExplainRecommendRequest, "validation"),
                (CatalogueEdit, "validation"),
                (ProblemBody, "serialization"),
            ],
            ref_template=SCHEMA,
        )
        document["components"]["schemas"] |= unseen["$defs"]
        app.openapi_schema = document
    return app.openapi_schema


def _version() -> str:
    try:
        return version("heed")
    except PackageNotFoundError:
        return "0"
