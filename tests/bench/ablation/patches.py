"""What stands in the place of a lever that is off, in every process of the server.

`site/sitecustomize.py` calls `install` when a process starts; a patch is applied when the module that it changes is
imported, and leaves a mark that says so. Where a patch does not find what it was written for, it raises, the import
fails and the server does not start. Every process pays for this module, so it imports nothing but the standard library.
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
"""Variables of a server's environment: the lever that is off, and the folder for the marks."""

Patch = Callable[[Any], None]
"""Changes a module that was just imported."""

_SLOWER_LOOPS = (
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS",
    "RAY_enable_metrics_collection",
    "RAY_task_events_report_interval_ms",
    "RAY_event_stats",
)


class MovedError(Exception):
    """What the lever was is not there any more; the message says what is missing."""


def install(lever: str, marks: str) -> None:
    """Apply the lever's patches to modules that this process has yet to import."""
    if lever not in PATCHES:
        raise MovedError(f"no lever is named {lever}")
    sys.meta_path.insert(0, _Patching(PATCHES[lever], Path(marks)))


def mark(marks: Path, module: str, process_id: int) -> Path:
    """The file that says: this module was changed in this process."""
    return marks / f"{module}-{process_id}"


class _Patching(MetaPathFinder):
    def __init__(self, patches: Mapping[str, Patch], marks: Path) -> None:
        self._patches = patches
        self._marks = marks

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._patches:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_patch(module: ModuleType) -> None:
                execute(module)
                self._patches[fullname](module)
                mark(self._marks, fullname, os.getpid()).touch()

            spec.loader.exec_module = execute_and_patch  # type: ignore[method-assign]
        return spec


def _found(owner: Any, name: str) -> Any:
    if not hasattr(owner, name):
        raise MovedError(f"{owner.__name__} has no {name} any more")
    return getattr(owner, name)


def _replace(owner: Any, name: str, stand_in: Any) -> None:
    """Raises when nothing has the name, or when it is a function that takes other arguments than its stand-in."""
    found = _found(owner, name)
    if inspect.isfunction(found):
        takes, given = (list(inspect.signature(one).parameters) for one in (stand_in, found))
        if takes != given:
            raise MovedError(f"{owner.__name__}.{name} takes {given} and no more {takes}")
    setattr(owner, name, stand_in)


def _leave_to_ray(cluster: Any, *names: str, **more: str) -> None:
    """Start the cluster without these variables, so that Ray's own defaults hold."""
    compose = _found(cluster, "environment")

    def environment(settings: Any, folder: Any, inherited: Any) -> dict[str, str]:
        composed = compose(settings, folder, inherited)
        if missing := set(names) - set(composed):
            raise MovedError(f"the cluster's environment has no {', '.join(sorted(missing))} any more")
        return {name: value for name, value in composed.items() if name not in names} | more

    _replace(cluster, "environment", environment)


def _serves_own_proxy(cluster: Any) -> None:
    # The throughput-optimised mode would turn direct ingress on, and that starts no proxy at all.
    _leave_to_ray(cluster, "RAY_SERVE_ENABLE_HA_PROXY", RAY_SERVE_ENABLE_DIRECT_INGRESS="0")
    ready, answers = _found(cluster, "READY"), _found(cluster, "_answers")

    def _is_ready(self: Any) -> bool:
        return (self._folder / ready).exists() and bool(answers(self._settings))

    _replace(_found(cluster, "Cluster"), "_is_ready", _is_ready)


def _without_throughput_mode(cluster: Any) -> None:
    _leave_to_ray(cluster, "RAY_SERVE_THROUGHPUT_OPTIMIZED")


def _rates_of_ray(cluster: Any) -> None:
    _leave_to_ray(cluster, *_SLOWER_LOOPS)


def _ordinary_route(gateway: Any) -> None:
    """As FastAPI's own documentation has it: it parses and validates the request, and validates the response."""
    from service.api import sentiment as ours

    item, result = _found(ours, "item_of"), _found(ours, "result_of")
    annotations = {"request": _found(ours, "SentimentRequest")}
    answered = _found(ours, "SentimentResponse")

    def add_sentiment(app: Any, predictor: Any, settings: Any) -> None:
        async def sentiment(request: Any) -> Any:
            deadline_s = time.monotonic() + settings.request_timeout_s
            inputs = request.inputs if isinstance(request.inputs, list) else [request.inputs]
            answer = await predictor.predict([item(one) for one in inputs], request.truncate, deadline_s)
            timings = answer.timings
            return {
                "model": predictor.bundle.name,
                "version": predictor.bundle.version,
                "results": [result(*pair) for pair in zip(inputs, answer.outcomes, strict=True)],
                "timings_ms": {
                    "tokenize": timings.tokenize_s * 1000,
                    "queue": timings.queue_s * 1000,
                    "infer": timings.infer_s * 1000,
                },
            }

        sentiment.__annotations__ = annotations
        app.post("/v1/sentiment", response_model=answered)(sentiment)

    _replace(gateway, "add_sentiment", add_sentiment)


def _as_they_come(batches: Any) -> None:
    """Within the budget of padded tokens, however much of it is padding."""

    def next_batch(lengths: Sequence[int], limits: Any) -> list[int]:
        size = 1
        while size < min(len(lengths), limits.batch_items):
            if max(lengths[: size + 1]) * (size + 1) > limits.batch_tokens:
                break
            size += 1
        return list(range(size))

    _replace(batches, "next_batch", next_batch)


def _one_at_a_time(batches: Any) -> None:
    def next_batch(lengths: Sequence[int], limits: Any) -> list[int]:
        return [0]

    _replace(batches, "next_batch", next_batch)


def _every_text_computed(cache: Any) -> None:
    """Answered texts are still counted, because the benchmark reads the count."""
    answered = _found(cache, "Prediction")
    _found(_found(cache, "CachedPredictor"), "_count")

    async def predict(self: Any, items: Any, truncate: bool = True, deadline_s: float = math.inf) -> Any:
        answer = await self._predictor.predict(items, truncate, deadline_s)
        self._count(answer.outcomes, sum(isinstance(one, answered) for one in answer.outcomes), cached=0)
        return answer

    _replace(cache.CachedPredictor, "predict", predict)


def _calibrated_one_by_one(engine: Any) -> None:
    from numpy import concatenate

    together = _found(engine, "calibrate_logits")

    def calibrate_logits(logits: Any, scalings: Sequence[Any]) -> Any:
        return concatenate([together(logits[row : row + 1], [scaling]) for row, scaling in enumerate(scalings)])

    _replace(engine, "calibrate_logits", calibrate_logits)


def _with_arena(runtime: Any) -> None:
    make = _found(_found(runtime, "onnxruntime"), "InferenceSession")

    def session(graph: Any, options: Any, **more: Any) -> Any:
        if options.enable_cpu_mem_arena:
            raise MovedError("the memory arena is on already")
        options.enable_cpu_mem_arena = True
        return make(graph, options, **more)

    _replace(runtime.onnxruntime, "InferenceSession", session)


def _one_request_a_call(remote: Any) -> None:
    """As many calls as requests: a bound would make requests wait that nothing then gathers."""

    def _gather(self: Any) -> Any:
        oldest = next(iter(self._waiting))
        self._remove(oldest)
        return (oldest,)

    _found(_found(remote, "RemotePredictor"), "_remove")
    _replace(remote.RemotePredictor, "_gather", _gather)
    _replace(remote, "CALLS_PER_REPLICA", 1 << 20)


PATCHES: Mapping[str, Mapping[str, Patch]] = {
    "haproxy": {"service.cluster.local": _serves_own_proxy},
    "throughput": {"service.cluster.local": _without_throughput_mode},
    "direct-route": {"service.api.gateway": _ordinary_route},
    "near-lengths": {"service.inference.batch_policy": _as_they_come},
    "batching": {"service.inference.batch_policy": _one_at_a_time},
    "in-flight": {"service.inference.cache": _every_text_computed},
    "calibration": {"service.inference.engine": _calibrated_one_by_one},
    "idle-loops": {"service.cluster.local": _rates_of_ray},
    "arena": {"models.runtime.onnx": _with_arena},
    "coalescing": {"service.cluster.remote": _one_request_a_call},
}
"""By lever and by the module that is changed. Levers that a setting turns off have none."""
