"""Ray Serve: which processes hold what, and the one file with deployments.

Inline placement: each gateway holds an engine, so a request crosses no process between HAProxy and the model. Remote
placement: gateways hold none and call replicas of the model, which scale with what the gateways have under way. `build`
is for `serve deploy`; `run_local` is the process behind `heed serve`, a private one-machine cluster that listens on
loopback only. Knows Ray; knows nothing of HTTP beyond handing the application over.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from models import bundle as bundles
from models.bundle import Bundle
from models.ranking.bundle_files import load_recommender
from service import settings
from service.api.gateway import create_app
from service.api.recommend import Rankings
from service.cluster import local as cluster
from service.cluster import ray_workarounds
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
from service.settings import Settings
from service.telemetry import logs
from service.telemetry.metrics import Metrics

_NAME = "heed"
_KEEP_ALIVE_S = 75
_OBJECT_STORE_BYTES = 80 * 2**20  # nothing of ours passes through it; 75 MiB is the least that Ray takes
# Serve's own bound on requests in one replica. Ours are the queues of engine and gateway, counted in tokens, which
# answer 429 with a computed Retry-After; Serve's default of 5 would keep the batcher from seeing more than 5 texts.
_MAX_ONGOING = 4096

_COMMON = {
    "max_ongoing_requests": _MAX_ONGOING,
    "max_constructor_retry_count": 2,
    "health_check_period_s": 2,
    "health_check_timeout_s": 10,
    "graceful_shutdown_timeout_s": 15,
    "graceful_shutdown_wait_loop_s": 0.5,
}

# Models scale by the calls that the gateways have under way, which are bounded: at the bound, texts wait in gateways.
_BUSY_SHARE = 0.5  # of that bound, above which a replica is added
_LOOK_BACK_S = 15.0
_UPSCALE_DELAY_S = 5.0
_DOWNSCALE_DELAY_S = 30.0  # a replica is back within seconds, so it need not be kept for long
_NEEDED_RESOURCE = 0.001  # of a custom resource: it says where models may be, not how many


@serve.ingress()
class GatewayDeployment:
    """One replica. Serve runs the lifespan of the application, and that starts and stops the predictors."""

    def __init__(self, chosen: Settings, *models: DeploymentHandle) -> None:
        """`models` are in the order of the settings' bundles; without them the models are held here."""
        logs.configure(chosen.log_level)
        ray_workarounds.close_handle_port()
        metrics = Metrics(chosen.metrics_dir)
        self._predictors = (
            [_remote(path, chosen, metrics, model) for path, model in zip(chosen.bundles.values(), models, strict=True)]
            if models
            else [_inline(path, chosen, metrics) for path in chosen.bundles.values()]
        )
        caches, shelf, rankings = {}, None, None
        for predictor in self._predictors:
            served, task = predictor.bundle, predictor.bundle.task.name
            metrics.set_bundle(task, served.name, served.version, served.digest)
            caches[task] = CachedPredictor(predictor, chosen.cache_entries, metrics.task(task))
            if task == "intent":
                shelf = HeadRegistry(served, chosen.data_dir)
            if task == "recommend":
                recommender = load_recommender(served)
                engine = RankingEngine(recommender, metrics.task(TASK))
                rankings = Rankings(engine, CatalogueRegistry(served, recommender, chosen.data_dir))
        self._vital: list[Predictor | RankingEngine] = [*self._predictors, *([rankings.engine] if rankings else [])]
        explaining = _explaining(self._predictors, rankings.engine if rankings else None)
        self._gateway = create_app(caches, chosen, metrics, shelf, explaining, rankings)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._gateway

    def check_health(self) -> None:
        """Raising makes Serve replace this replica."""
        if not all(one.healthy for one in self._vital):
            raise RuntimeError("the inference thread has died")


class ModelDeployment:
    """One replica of the model alone; the gateways call `predict`."""

    async def __init__(self, chosen: Settings, path: Path) -> None:  # type: ignore[misc]  # Serve awaits it
        logs.configure(chosen.log_level)
        ray_workarounds.close_handle_port()
        self._tally = CountBuffer()
        self._engine = _engine(bundles.load_bundle(path), chosen, self._tally)
        await self._engine.start()

    async def predict(self, parts: Sequence[RemoteRequest]) -> RemoteResponse:
        return await answer_requests(self._engine, self._tally, parts)

    def check_health(self) -> None:
        """Raising makes Serve replace this replica."""
        if not self._engine.healthy:
            raise RuntimeError("the inference thread has died")


def _inline(path: Path, chosen: Settings, metrics: Metrics) -> Predictor:
    bundle = bundles.load_bundle(path)
    return _engine(bundle, chosen, metrics.task(bundle.task.name))


def _remote(path: Path, chosen: Settings, metrics: Metrics, model: DeploymentHandle) -> Predictor:
    bundle = bundles.load_unverified(path)
    task = bundle.task.name
    replicas = ray_workarounds.replica_counter(model)
    return RemotePredictor(bundle, model, replicas, batch_limits(chosen), metrics.task(task), metrics.calls(task))


def _engine(bundle: Bundle, chosen: Settings, recorder: EngineMetrics) -> Engine:
    if chosen.device == "cpu":
        return open_engine(bundle, chosen, recorder)
    # Here and not above: it needs onnx, which serving on a CPU does without.
    from service.tuning.gpu_batches import measure_batch_limits

    return open_engine(bundle, chosen, recorder, measure_batch_limits)


def _explaining(predictors: Sequence[Predictor], recommending: RankingEngine | None) -> ExplanationWorker | None:
    """Of those that are held here, as rankings always are."""
    engines = [predictor for predictor in predictors if isinstance(predictor, Engine)]
    answering: list[Engine | RankingEngine] = [*engines, *([recommending] if recommending else [])]
    sources = {engine.bundle.task.name: ExplainableModel(engine.bundle, engine.tokenizer) for engine in engines}
    return ExplanationWorker(sources, lambda: any(one.busy for one in answering)) if answering else None


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application for `serve deploy`; `args` are settings by name and win over the environment of the nodes."""
    return _application(settings.load_settings(**args))


def _application(chosen: Settings) -> serve.Application:
    inline = chosen.placement == "inline"
    gateway: serve.Deployment = serve.deployment(
        GatewayDeployment,
        name="gateway",
        num_replicas=chosen.replicas,
        ray_actor_options={
            "num_cpus": 1,
            "num_gpus": 1 / chosen.replicas if inline and chosen.device == "cuda" else 0,
        },
        **_COMMON,
    )
    models = {} if inline else chosen.bundles
    return gateway.bind(chosen, *(_model(task, chosen).bind(chosen, path) for task, path in models.items()))


def _model(task: str, chosen: Settings) -> serve.Deployment:
    model: serve.Deployment = serve.deployment(
        ModelDeployment,
        name=f"{task}-model",
        autoscaling_config=AutoscalingConfig(
            min_replicas=chosen.model_replicas_min,
            max_replicas=chosen.model_replicas_max,
            target_ongoing_requests=_BUSY_SHARE * CALLS_PER_REPLICA * chosen.replicas,
            look_back_period_s=_LOOK_BACK_S,
            upscale_delay_s=_UPSCALE_DELAY_S,
            downscale_delay_s=_DOWNSCALE_DELAY_S,
        ),
        ray_actor_options={
            "num_cpus": chosen.model_cpus,
            "num_gpus": chosen.model_gpus if chosen.device == "cuda" else 0,
            "resources": {chosen.model_resource: _NEEDED_RESOURCE} if chosen.model_resource else {},
        },
        **_COMMON,
    )
    return model


def _start(chosen: Settings, folder: Path) -> None:
    ray_workarounds.check_ray()
    ray_workarounds.bind_to_loopback()
    if not chosen.dashboard:
        ray_workarounds.without_dashboard()
    models = len(chosen.bundles) if chosen.placement == "remote" else 0
    models_cpus = models * chosen.model_cpus * chosen.model_replicas_max
    ray.init(
        address="local",
        num_cpus=chosen.replicas + math.ceil(models_cpus),  # what they ask for, not what the machine has
        resources={chosen.model_resource: 1} if chosen.model_resource else None,
        include_dashboard=chosen.dashboard,
        object_store_memory=_OBJECT_STORE_BYTES,
        _temp_dir=str(folder / "ray"),
    )
    quiet = LoggingConfig(enable_access_log=False, log_level=chosen.log_level.upper())
    # Replicas take the same host as the proxy, so it is loopback here; `haproxy` moves the public port to its place.
    loopback = {"host": "127.0.0.1", "port": chosen.port, "keep_alive_timeout_s": _KEEP_ALIVE_S}
    serve.start(proxy_location="HeadOnly", http_options=loopback, logging_config=quiet)
    serve.run(_application(chosen), name=_NAME, route_prefix="/", logging_config=quiet)


def run_local(folder: str) -> None:
    """Serve from a cluster of this machine alone, with its files in `folder`, until SIGTERM."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        _start(settings.load_settings(), Path(folder))
        (Path(folder) / cluster.READY).touch()
        signal.pause()
    except KeyboardInterrupt:
        pass
    except ray_workarounds.RayChangedError as error:
        (Path(folder) / cluster.REFUSED).write_text(str(error), encoding="utf-8")
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Without a cluster, Serve's shutdown would start one.
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()
