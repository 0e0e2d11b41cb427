"""Ray Serve: the deployments, and which process holds what.

With inline placement, each gateway holds an engine, so a request crosses no process between HAProxy and the model.
With remote placement, gateways hold no engine. They call replicas of the model, which scale with the calls under way.
`build` is for `serve deploy`. `run_local` is the process behind `heed serve`: a private cluster of one machine that
listens on loopback only. This module knows Ray. It knows nothing of HTTP except that it hands over the application.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import structlog
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from models import bundle as bundles
from models.bundle import Bundle
from models.catalogue.items import CatalogueLimits
from models.ranking.bundle_files import load_recommender
from service.api.gateway import create_app
from service.api.recommend import Rankings
from service.cluster import local as cluster
from service.cluster import ray_haproxy, ray_workarounds
from service.cluster.remote import CALLS_PER_REPLICA, RemotePredictor
from service.cluster.remote_call import CountBuffer, RemoteRequest, RemoteResponse, answer_requests
from service.explanation.worker import ExplainableModel, ExplanationWorker
from service.inference.assembly import batch_limits, open_engine
from service.inference.cache import CachedPredictor
from service.inference.engine import Engine, EngineMetrics
from service.inference.predictor import Predictor
from service.inference.ranking_engine import TASK, RankingEngine
from service.registry.catalogues import CatalogueRegistry
from service.registry.heads import HeadRegistry
from service.settings import Settings, load_settings
from service.start_checks import check_data_folder, check_deployment
from service.telemetry import logs
from service.telemetry.access_log import AccessLog
from service.telemetry.metrics import Metrics

_log = structlog.get_logger(__name__)

_NAME = "heed"
_KEEP_ALIVE_S = 75
_OBJECT_STORE_BYTES = 80 * 2**20  # Heed stores nothing there; Ray needs at least 75 MiB
# Serve's bound on requests in one replica. Heed bounds the queues of engine and gateway in tokens, and answers 429 with
# a computed Retry-After. With Serve's default of 5, the batcher would never see more than 5 texts.
_MAX_ONGOING = 4096

_COMMON = {
    "max_ongoing_requests": _MAX_ONGOING,
    "max_constructor_retry_count": 2,
    "health_check_period_s": 2,
    "health_check_timeout_s": 10,
    "graceful_shutdown_timeout_s": 15,
    "graceful_shutdown_wait_loop_s": 0.5,
}

# Models scale with the calls under way in the gateways. Their number is bounded: above the bound, texts wait there.
_BUSY_SHARE = 0.5  # of that bound; above it, a replica is added
_LOOK_BACK_S = 15.0
_UPSCALE_DELAY_S = 5.0
_DOWNSCALE_DELAY_S = 30.0  # short, because a replica returns within seconds
_NEEDED_RESOURCE = 0.001  # of a custom resource, which limits where models run, not how many


@serve.ingress()
class GatewayDeployment:
    """One gateway. Serve runs the lifespan of the application, which starts and stops the predictors."""

    def __init__(self, settings: Settings, *models: DeploymentHandle) -> None:
        """Build the application. `models` are in the order of the settings' bundles; without them, models run here."""
        output = logs.configure("gateway", settings.log_level, settings.log_format, settings.metrics_dir)
        with logs.log_failed_start("gateway"):
            self._build(settings, models, AccessLog(output) if settings.access_log else None)

    def _build(self, settings: Settings, models: Sequence[DeploymentHandle], access_log: AccessLog | None) -> None:
        check_data_folder(settings)  # that of this node
        ray_workarounds.close_handle_port()
        metrics = Metrics(settings.metrics_dir)
        self._predictors = (
            [
                _remote(path, settings, metrics, model)
                for path, model in zip(settings.bundles.values(), models, strict=True)
            ]
            if models
            else [_inline(path, settings, metrics) for path in settings.bundles.values()]
        )
        caches, heads, rankings = {}, None, None
        for predictor in self._predictors:
            bundle, task = predictor.bundle, predictor.bundle.task.name
            metrics.set_bundle(task, bundle.name, bundle.version, bundle.digest)
            caches[task] = CachedPredictor(predictor, settings.cache_entries, metrics.task(task))
            if task == "intent":
                heads = HeadRegistry(bundle, settings.data_dir)
            if task == "recommend":
                recommender = load_recommender(bundle)
                engine = RankingEngine(recommender, metrics.task(TASK))
                limits = CatalogueLimits(settings.max_catalogue_items, settings.max_catalogue_bytes)
                catalogues = CatalogueRegistry(bundle, recommender, settings.data_dir, limits=limits)
                rankings = Rankings(engine, catalogues)
        ranking_engine = rankings.engine if rankings else None
        self._health_checked: list[Predictor | RankingEngine] = [
            *self._predictors,
            *([ranking_engine] if ranking_engine else []),
        ]
        worker = _explanation_worker(self._predictors, ranking_engine)
        self._gateway = create_app(caches, settings, metrics, heads, worker, rankings, access_log)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._gateway

    def check_health(self) -> None:
        """Raise RuntimeError if an engine has failed, so that Serve replaces this replica."""
        if not all(engine.healthy for engine in self._health_checked):
            raise RuntimeError("the inference thread has died")


class ModelDeployment:
    """One replica of a model, without an API. The gateways call `predict`."""

    async def __init__(self, settings: Settings, path: Path) -> None:  # type: ignore[misc]  # Serve awaits it
        logs.configure("model", settings.log_level, settings.log_format, settings.metrics_dir)
        logs.log_loop_faults()
        with logs.log_failed_start("model"):
            ray_workarounds.close_handle_port()
            self._counts = CountBuffer()
            bundle = bundles.load_bundle(path)
            self._engine = _open_engine(bundle, settings, self._counts)
            await self._engine.start()
        _log.info("model loaded", task=bundle.task.name, model=bundle.name, version=bundle.version)

    async def predict(self, requests: Sequence[RemoteRequest]) -> RemoteResponse:
        return await answer_requests(self._engine, self._counts, requests)

    def check_health(self) -> None:
        """Raise RuntimeError if the engine has failed, so that Serve replaces this replica."""
        if not self._engine.healthy:
            raise RuntimeError("the inference thread has died")


def _inline(path: Path, settings: Settings, metrics: Metrics) -> Predictor:
    bundle = bundles.load_bundle(path)
    return _open_engine(bundle, settings, metrics.task(bundle.task.name))


def _remote(path: Path, settings: Settings, metrics: Metrics, model: DeploymentHandle) -> Predictor:
    bundle = bundles.load_unverified(path)
    task = bundle.task.name
    replica_count = ray_workarounds.replica_counter(model)
    return RemotePredictor(
        bundle, model, replica_count, batch_limits(settings), metrics.task(task), metrics.calls(task)
    )


def _open_engine(bundle: Bundle, settings: Settings, recorder: EngineMetrics) -> Engine:
    if settings.device == "cpu":
        return open_engine(bundle, settings, recorder)
    # Not imported above, because it needs onnx, which serving on a CPU does not install.
    from service.tuning.gpu_batches import measure_batch_limits

    return open_engine(bundle, settings, recorder, measure_batch_limits)


def _explanation_worker(
    predictors: Sequence[Predictor], ranking_engine: RankingEngine | None
) -> ExplanationWorker | None:
    """Return a worker for the models in this process, which always include rankings, or None if there are none."""
    engines = [predictor for predictor in predictors if isinstance(predictor, Engine)]
    local: list[Engine | RankingEngine] = [*engines, *([ranking_engine] if ranking_engine else [])]
    models = {engine.bundle.task.name: ExplainableModel(engine.bundle, engine.tokenizer) for engine in engines}
    return ExplanationWorker(models, lambda: any(engine.busy for engine in local)) if local else None


def build(args: Mapping[str, Any]) -> serve.Application:
    """Return the application for `serve deploy`. `args` are settings by name, and override the nodes' environment.

    Raises SettingsError or ClusterError, in one line, if it could not start.
    """
    settings = load_settings(**args)
    check_deployment(settings)
    return application_of(settings)


def application_of(settings: Settings) -> serve.Application:
    """Return the deployments, without a check that they could start."""
    inline = settings.placement == "inline"
    gateway: serve.Deployment = serve.deployment(
        GatewayDeployment,
        name="gateway",
        num_replicas=settings.replicas,
        ray_actor_options={
            "num_cpus": 1,
            "num_gpus": 1 / settings.replicas if inline and settings.device == "cuda" else 0,
        },
        **_COMMON,
    )
    models = {} if inline else settings.bundles
    return gateway.bind(settings, *(_model(task, settings).bind(settings, path) for task, path in models.items()))


def _model(task: str, settings: Settings) -> serve.Deployment:
    model: serve.Deployment = serve.deployment(
        ModelDeployment,
        name=f"{task}-model",
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.model_replicas_min,
            max_replicas=settings.model_replicas_max,
            target_ongoing_requests=_BUSY_SHARE * CALLS_PER_REPLICA * settings.replicas,
            look_back_period_s=_LOOK_BACK_S,
            upscale_delay_s=_UPSCALE_DELAY_S,
            downscale_delay_s=_DOWNSCALE_DELAY_S,
        ),
        ray_actor_options={
            "num_cpus": settings.model_cpus,
            "num_gpus": settings.model_gpus if settings.device == "cuda" else 0,
            "resources": {settings.model_resource: _NEEDED_RESOURCE} if settings.model_resource else {},
        },
        **_COMMON,
    )
    return model


def _start(settings: Settings, folder: Path) -> None:
    ray_workarounds.check_ray()
    ray_haproxy.check_template()
    ray_workarounds.bind_to_loopback()
    if not settings.dashboard:
        ray_workarounds.disable_dashboard()
    model_count = len(settings.bundles) if settings.placement == "remote" else 0
    model_cpus = model_count * settings.model_cpus * settings.model_replicas_max
    ray.init(
        address="local",
        num_cpus=settings.replicas + math.ceil(model_cpus),  # the cores requested, not those of the machine
        resources={settings.model_resource: 1} if settings.model_resource else None,
        include_dashboard=settings.dashboard,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=str(folder / "ray"),
    )
    logging = LoggingConfig(enable_access_log=False, log_level=settings.log_level.upper())
    # Replicas use the host of the proxy, so it is loopback here. `haproxy` moves the public port to its address.
    loopback = {"host": "127.0.0.1", "port": settings.port, "keep_alive_timeout_s": _KEEP_ALIVE_S}
    serve.start(proxy_location="HeadOnly", http_options=loopback, logging_config=logging)
    serve.run(application_of(settings), name=_NAME, route_prefix="/", logging_config=logging)


def run_local(folder: str) -> None:
    """Serve from a cluster on this machine only, with its files in `folder`, until SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _start(load_settings(), Path(folder))
        (Path(folder) / cluster.READY).touch()
        signal.pause()
    except KeyboardInterrupt:
        pass
    except ray_workarounds.RayChangedError as error:
        (Path(folder) / cluster.REFUSED).write_text(str(error), encoding="utf-8")
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # If there is no cluster, Serve's shutdown would start one.
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()
