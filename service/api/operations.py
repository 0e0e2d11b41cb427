"""/v1/models, /healthz, /readyz and /metrics."""

from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse

from models.bundle import Bundle
from service.errors import NotReady
from service.http.responses import problem_responses
from service.inference.predictor import Predictor
from service.inference.ranking_engine import RankingEngine
from service.registry.heads import HeadRegistry
from service.schemas.operations import Health, MetricInfo, ModelInfo, ModelLimits, ModelList
from service.schemas.wire import MAX_INPUTS
from service.settings import Settings
from service.telemetry.metrics import CONTENT_TYPE, Metrics

_RETRY_S = 2.0


def add_operations(
    app: FastAPI,
    predictors: Mapping[str, Predictor],
    settings: Settings,
    metrics: Metrics,
    shelf: HeadRegistry | None,
    vital: Sequence[Predictor | RankingEngine],
) -> None:
    @app.get("/v1/models")
    async def models() -> ModelList:
        """The models that are served: labels, limits, digest, and the figures they were measured at."""
        return ModelList(models=[_model_info(predictor.bundle, settings, shelf) for predictor in predictors.values()])

    @app.get("/healthz", responses=problem_responses(503))
    async def healthz() -> Health:
        """Alive; 503 when this process can no longer answer and should be replaced."""
        if not all(one.healthy for one in vital):
            raise NotReady("The inference thread has died.", retry_after_s=_RETRY_S)
        return Health(status="ok")

    @app.get("/readyz", responses=problem_responses(503))
    async def readyz() -> Health:
        """Models loaded and warm; 503 before that, and while shutting down."""
        if not all(predictor.ready for predictor in predictors.values()):
            raise NotReady("The models are not loaded and warm.", retry_after_s=_RETRY_S)
        return Health(status="ok")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def prometheus() -> Response:
        """Prometheus text, summed over all replicas of this node."""
        return Response(metrics.render(), media_type=CONTENT_TYPE)


def _model_info(bundle: Bundle, settings: Settings, shelf: HeadRegistry | None) -> ModelInfo:
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
        limits=ModelLimits(max_tokens=bundle.max_tokens, max_inputs=MAX_INPUTS, max_body_bytes=settings.max_body_bytes),
        metrics=[
            MetricInfo(dataset=m.dataset, language=m.language, name=m.name, value=m.value, command=m.command)
            for m in bundle.metrics
        ],
    )
