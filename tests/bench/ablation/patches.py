"""Patches that turn a lever off in every process of the server.

`site/sitecustomize.py` calls `install` when a process starts. A patch is applied when its module is imported, and
then leaves a mark file. A patch whose target is missing raises, so the import fails and the server does not start.
Every process loads this module, so it imports only the standard library.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

LEVER, MARKS = "ABLATION_LEVER", "ABLATION_MARKS"
"""Environment variables of a server: the lever that is off, and the folder for the marks."""

Patch = Callable[[Any], None]
"""A function that changes a module right after its import."""

_SLOWER_LOOPS = (
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS",
    "RAY_enable_metrics_collection",
    "RAY_task_events_report_interval_ms",
    "RAY_event_stats",
)


class MovedError(Exception):
    """The target of a patch is missing. The message names it."""


def install(lever: str, marks: str) -> None:
    """Apply the patches of a lever to modules when this process imports them. Raise MovedError for an unknown lever."""
    if lever not in PATCHES:
        raise MovedError(f"no lever is named {lever}")
    sys.meta_path.insert(0, _PatchingFinder(PATCHES[lever], Path(marks)))


def mark(marks: Path, module: str, process_id: int) -> Path:
    """Return the path of the file that marks a module as changed in a process."""
    return marks / f"{module}-{process_id}"


class _PatchingFinder(MetaPathFinder):
    def __init__(self, patches: Mapping[str, Patch], marks: Path) -> None:
        self._patches = patches
        self._marks = marks

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._patches:
            return None
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_patch(module: ModuleType) -> None:
                execute(module)
                self._patches[fullname](module)
                mark(self._marks, fullname, os.getpid()).touch()

            spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def _get_attribute(owner: Any, name: str) -> Any:
    if not hasattr(owner, name):
        raise MovedError(f"{owner.__name__} no longer has {name}")
    return getattr(owner, name)


def _replace(owner: Any, name: str, stand_in: Any) -> None:
    """Replace an attribute. Raise MovedError if it is missing or a function with other parameters than `stand_in`."""
    current = _get_attribute(owner, name)
    if inspect.isfunction(current):
        expected, actual = (list(inspect.signature(function).parameters) for function in (stand_in, current))
        if expected != actual:
            raise MovedError(f"{owner.__name__}.{name} takes {actual} and no longer {expected}")
    setattr(owner, name, stand_in)


def _restore_ray_defaults(cluster: Any, *names: str, **more: str) -> None:
    """Start the cluster without the variables, so that Ray's defaults apply."""
    compose = _get_attribute(cluster, "build_environment")

    def build_environment(settings: Any, folder: Any, inherited: Any) -> dict[str, str]:
        composed = compose(settings, folder, inherited)
        if missing := set(names) - set(composed):
            raise MovedError(f"the cluster's environment no longer has {', '.join(sorted(missing))}")
        return {name: value for name, value in composed.items() if name not in names} | more

    _replace(cluster, "build_environment", build_environment)


def _use_serve_proxy(cluster: Any) -> None:
    # The throughput-optimised mode turns direct ingress on, which starts no proxy.
    _restore_ray_defaults(cluster, "RAY_SERVE_ENABLE_HA_PROXY", RAY_SERVE_ENABLE_DIRECT_INGRESS="0")
    ready, is_answering = _get_attribute(cluster, "READY"), _get_attribute(cluster, "_is_answering")

    def _is_ready(self: Any) -> bool:
        return (self._folder / ready).exists() and bool(is_answering(self._settings))

    _replace(_get_attribute(cluster, "Cluster"), "_is_ready", _is_ready)


def _disable_throughput_mode(cluster: Any) -> None:
    _restore_ray_defaults(cluster, "RAY_SERVE_THROUGHPUT_OPTIMIZED")


def _restore_loop_rates(cluster: Any) -> None:
    _restore_ray_defaults(cluster, *_SLOWER_LOOPS)


def _use_fastapi_route(gateway: Any) -> None:
    """Add the route as FastAPI's documentation does. FastAPI parses and validates the request and the response."""
    from service.api import sentiment as route

    item_of, result_of = _get_attribute(route, "item_of"), _get_attribute(route, "result_of")
    annotations = {"request": _get_attribute(route, "SentimentRequest")}
    response_model = _get_attribute(route, "SentimentResponse")

    def add_sentiment(app: Any, predictor: Any, settings: Any) -> None:
        async def sentiment(request: Any) -> Any:
            deadline_s = time.monotonic() + settings.request_timeout_s
            inputs = request.inputs if isinstance(request.inputs, list) else [request.inputs]
            answer = await predictor.predict([item_of(item) for item in inputs], request.truncate, deadline_s)
            timings = answer.timings
            return {
                "model": predictor.bundle.name,
                "version": predictor.bundle.version,
                "results": [result_of(*pair) for pair in zip(inputs, answer.outcomes, strict=True)],
                "timings_ms": {
                    "tokenize": timings.tokenize_s * 1000,
                    "queue": timings.queue_s * 1000,
                    "infer": timings.infer_s * 1000,
                },
            }

        sentiment.__annotations__ = annotations
        app.post("/v1/sentiment", response_model=response_model)(sentiment)

    _replace(gateway, "add_sentiment", add_sentiment)


def _ignore_padding(batches: Any) -> None:
    """Fill batches up to the budget of padded tokens, with any share of padding."""

    def next_batch(lengths: Sequence[int], limits: Any) -> list[int]:
        size = 1
        while size < min(len(lengths), limits.batch_items):
            if max(lengths[: size + 1]) * (size + 1) > limits.batch_tokens:
                break
            size += 1
        return list(range(size))

    _replace(batches, "next_batch", next_batch)


def _run_single_texts(batches: Any) -> None:
    def next_batch(lengths: Sequence[int], limits: Any) -> list[int]:
        return [0]

    _replace(batches, "next_batch", next_batch)


def _compute_every_text(cache: Any) -> None:
    """Compute every text. Predictions are still counted, because the benchmark reads the count."""
    prediction = _get_attribute(cache, "Prediction")
    _get_attribute(_get_attribute(cache, "CachedPredictor"), "_count")

    async def predict(self: Any, items: Any, truncate: bool = True, deadline_s: float = math.inf) -> Any:
        answer = await self._predictor.predict(items, truncate, deadline_s)
        self._count(answer.outcomes, sum(isinstance(outcome, prediction) for outcome in answer.outcomes), cached=0)
        return answer

    _replace(cache.CachedPredictor, "predict", predict)


def _calibrate_single_texts(engine: Any) -> None:
    from numpy import concatenate

    calibrate = _get_attribute(engine, "calibrate_logits")

    def calibrate_logits(logits: Any, scalings: Sequence[Any]) -> Any:
        return concatenate([calibrate(logits[row : row + 1], [scaling]) for row, scaling in enumerate(scalings)])

    _replace(engine, "calibrate_logits", calibrate_logits)


def _enable_arena(runtime: Any) -> None:
    make = _get_attribute(_get_attribute(runtime, "onnxruntime"), "InferenceSession")

    def session(graph: Any, options: Any, **more: Any) -> Any:
        if options.enable_cpu_mem_arena:
            raise MovedError("the memory arena is on already")
        options.enable_cpu_mem_arena = True
        return make(graph, options, **more)

    _replace(runtime.onnxruntime, "InferenceSession", session)


def _send_single_requests(remote: Any) -> None:
    """Send each request in a call of its own. Calls are unlimited, because waiting requests would not be gathered."""

    def _gather(self: Any) -> Any:
        oldest = next(iter(self._waiting))
        self._remove(oldest)
        return (oldest,)

    _get_attribute(_get_attribute(remote, "RemotePredictor"), "_remove")
    _replace(remote.RemotePredictor, "_gather", _gather)
    _replace(remote, "CALLS_PER_REPLICA", 1 << 20)


PATCHES: Mapping[str, Mapping[str, Patch]] = {
    "haproxy": {"service.cluster.local": _use_serve_proxy},
    "throughput": {"service.cluster.local": _disable_throughput_mode},
    "direct-route": {"service.api.gateway": _use_fastapi_route},
    "near-lengths": {"service.inference.batch_policy": _ignore_padding},
    "batching": {"service.inference.batch_policy": _run_single_texts},
    "in-flight": {"service.inference.cache": _compute_every_text},
    "calibration": {"service.inference.engine": _calibrate_single_texts},
    "idle-loops": {"service.cluster.local": _restore_loop_rates},
    "arena": {"models.runtime.onnx": _enable_arena},
    "coalescing": {"service.cluster.remote": _send_single_requests},
}
"""Patches by lever and by the module that they change. Levers that a setting turns off have none."""
