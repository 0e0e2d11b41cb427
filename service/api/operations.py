"""`/v1/models`, `/healthz`, `/readyz` and `/metrics`."""

from collections.abc import Mapping, Sequence

from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse

from models.bundle import Bundle
from service.errors import NotReady
from service.http.openapi import Operation
from service.inference.predictor import Predictor
from service.inference.ranking_engine import RankingEngine
from service.registry.heads import HeadRegistry
from service.schemas.examples import METRICS
from service.schemas.operations import Health, MetricInfo, ModelInfo, ModelLimits, ModelList
from service.schemas.recommend import MAX_USERS
from service.schemas.wire import MAX_INPUTS
from service.settings import Settings
from service.telemetry.metrics import CONTENT_TYPE, Metrics

_MAX_INPUTS = {"recommend": MAX_USERS}
"""The maximum number of inputs by task, where it is not `MAX_INPUTS`."""

_RETRY_S = 2.0
_TAG = "Operations"


def add_operations(
    app: FastAPI,
    predictors: Mapping[str, Predictor],
    settings: Settings,
    metrics: Metrics,
    registry: HeadRegistry | None,
    health_checked: Sequence[Predictor | RankingEngine],
) -> None:
    """Add the routes."""

    @app.get("/v1/models", **Operation("list_models", _TAG, "List the models").options())
    async def models() -> ModelList:
        """Return the labels, limits, digest and quality figures of each served model."""
        models = [_model_info(predictor.bundle, settings, registry) for predictor in predictors.values()]
        return ModelList(models=models)

    @app.get("/healthz", **Operation("get_health", _TAG, "Check that the service is alive", (503,)).options())
    async def healthz() -> Health:
        """Return 200 while the process can answer, and 503 if it should be replaced."""
        if not all(service.healthy for service in health_checked):
            raise NotReady("The inference thread has died.", retry_after_s=_RETRY_S)
        return Health(status="ok")

    @app.get("/readyz", **Operation("get_readiness", _TAG, "Check that the models are ready", (503,)).options())
    async def readyz() -> Health:
        """Return 200 while the models are loaded and warm, and 503 before that and during shutdown."""
        if not all(predictor.ready for predictor in predictors.values()):
            raise NotReady("The models are not loaded and warm.", retry_after_s=_RETRY_S)
        return Health(status="ok")

    options = Operation("get_metrics", _TAG, "Read the metrics").options()
    options["responses"] = {200: {"content": {"text/plain": {"example": METRICS}}}}

    @app.get("/metrics", response_class=PlainTextResponse, **options)
    async def prometheus() -> Response:
        """Return metrics as Prometheus text, summed over the replicas of a node."""
        return Response(metrics.render(), media_type=CONTENT_TYPE)


def _model_info(bundle: Bundle, settings: Settings, registry: HeadRegistry | None) -> ModelInfo:
    if bundle.task.name != "intent":
        registry = None
    return ModelInfo(
        name=bundle.name,
        version=bundle.version,
        task=bundle.task.name,
        labels=list(bundle.task.labels),
        label_sets={} if registry is None else {name: list(head.labels) for name, head in registry.heads.items()},
        reply_sets=[] if registry is None else sorted(registry.reply_sets),
        languages=list(bundle.languages),
        digest=bundle.digest,
        base=bundle.base,
        limits=ModelLimits(
            max_tokens=bundle.max_tokens,
            max_inputs=_MAX_INPUTS.get(bundle.task.name, MAX_INPUTS),
            max_body_bytes=settings.max_body_bytes,
        ),
        metrics=[
            MetricInfo(
                dataset=metric.dataset,
                language=metric.language,
                name=metric.name,
                value=metric.value,
                command=metric.command,
            )
            for metric in bundle.metrics
        ],
    )
