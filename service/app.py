"""Ray Serve: which processes hold what, and the one file with a deployment.

Inline placement: each replica holds the gateway and the engine, so a request crosses no process between HAProxy and
the model. `build` is for `serve deploy`; `run_local` is the process behind `heed serve`, a private one-machine cluster
that listens on loopback only. Knows Ray; knows nothing of HTTP beyond handing the application over.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray._common.network_utils import is_localhost
from ray._private import ray_constants
from ray.serve._private import replica as serve_replica
from ray.serve.schema import LoggingConfig

from models import bundle as bundles
from models.runtime_onnx import OnnxRuntime
from models.tokens import Tokenizer
from service import cluster, logs, settings
from service.batching import Limits
from service.cache import Cache
from service.engine import Engine
from service.gateway import create_app
from service.metrics import Metrics
from service.settings import Settings

_NAME = "heed"
_KEEP_ALIVE_S = 75
_OBJECT_STORE_BYTES = 80 * 2**20  # nothing of ours passes through it; 75 MiB is the least that Ray takes
# Serve's own bound on requests in one replica. Ours is the engine's queue, counted in tokens, which answers 429 with a
# computed Retry-After; Serve's default of 5 would keep the batcher from ever seeing more than 5 texts.
_MAX_ONGOING = 4096


@serve.ingress()
class Gateway:
    """One replica. Serve runs the lifespan of the application, and that starts and stops the engine."""

    def __init__(self, chosen: Settings) -> None:
        logs.configure(chosen.log_level)
        _close_handle_port()
        metrics = Metrics(chosen.metrics_dir)
        self._engine = _engine(chosen, metrics)
        task = self._engine.bundle.task.name
        cache = Cache(self._engine, chosen.cache_entries, metrics.task(task))
        self._gateway = create_app({task: cache}, chosen, metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._gateway

    def check_health(self) -> None:
        """Raising makes Serve replace this replica."""
        if not self._engine.healthy:
            raise RuntimeError("the inference thread has died")


def _engine(chosen: Settings, metrics: Metrics) -> Engine:
    bundle = bundles.load(chosen.bundle)
    graph = bundle.gpu_graph if chosen.device == "cuda" and bundle.gpu_graph.is_file() else bundle.graph
    metrics.bundle(bundle.task.name, bundle.name, bundle.version, bundle.digest)
    return Engine(
        bundle,
        Tokenizer(bundle.tokenizer, bundle.max_tokens),
        OnnxRuntime(graph, chosen.threads, chosen.device),
        Limits(chosen.batch_tokens, chosen.batch_items, chosen.queue_tokens),
        metrics.task(bundle.task.name),
    )


def _close_handle_port() -> None:
    """Keep the port for calls between deployments on loopback when the whole cluster is there.

    Serve 2.60.0 binds it to `[::]` in every replica, used or not, and has no setting for it.
    """
    if not is_localhost(ray.util.get_node_ip_address()):
        return
    bind = serve_replica.add_port_to_grpc_server
    serve_replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", "127.0.0.1"))


def build(args: Mapping[str, Any]) -> serve.Application:
    """The application for `serve deploy`; `args` are settings by name and win over the environment of the nodes."""
    return _application(settings.load(**args))


def _application(chosen: Settings) -> serve.Application:
    gateway: serve.Deployment = serve.deployment(
        Gateway,
        name="gateway",
        num_replicas=chosen.replicas,
        max_ongoing_requests=_MAX_ONGOING,
        max_constructor_retry_count=2,
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=15,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": 1, "num_gpus": 1 / chosen.replicas if chosen.device == "cuda" else 0},
    )
    return gateway.bind(chosen)


def _start(chosen: Settings, folder: Path) -> None:
    # The one switch with which every port of Ray binds to 127.0.0.1: that address given to `ray.init` is replaced by
    # the address of the network card.
    ray_constants.ENABLE_RAY_CLUSTER = False
    ray.init(
        address="local",
        num_cpus=chosen.replicas,
        include_dashboard=False,
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
        _start(settings.load(), Path(folder))
        (Path(folder) / cluster.READY).touch()
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # Without a cluster, Serve's shutdown would start one.
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()
