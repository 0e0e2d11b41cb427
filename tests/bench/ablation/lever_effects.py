"""The effects of the patched levers that are visible without a server, for `test_ablation`.

As a command, in a process with a lever off, prints the effect of that lever. Imports are inside the functions, so that
each process loads only the modules of its lever.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch


def ray_variables(folder: Path) -> object:
    """Return the Ray variables that the cluster starts with."""
    from service.cluster.local import build_environment
    from service.settings import Settings

    composed = build_environment(Settings(), folder, {})
    names = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_event_stats")
    return [name for name in names if name in composed]


def fastapi_reads_body(folder: Path) -> object:
    """Return whether FastAPI reads the body of the hot route."""
    from fastapi.routing import APIRoute

    from service.api.gateway import create_app
    from service.settings import Settings
    from service.telemetry.metrics import Metrics

    app = create_app({"sentiment": _SlowPredictor()}, Settings(), Metrics(folder / "metrics"))
    (route,) = (route for route in app.routes if isinstance(route, APIRoute) and route.path == "/v1/sentiment")
    return route.body_field is not None


def batch_positions(_: Path) -> object:
    """Return the positions of the waiting texts that run together."""
    from service.inference.batch_policy import BatchLimits, next_batch

    return next_batch([10, 200, 11, 10, 10], BatchLimits(batch_tokens=650, batch_items=16, queue_tokens=4096))


def computed_texts(_: Path) -> object:
    """Return the number of texts that are computed for two concurrent callers with the same text."""
    from service.inference.cache import CachedPredictor
    from service.inference.predictor import Item

    predictor = _SlowPredictor()

    async def send_twice() -> None:
        cached = CachedPredictor(predictor, 0, _NullMetrics())  # type: ignore[arg-type]
        await asyncio.gather(*(cached.predict([Item("the same")]) for _ in range(2)))

    asyncio.run(send_twice())
    return predictor.texts


def calibrated_scores(_: Path) -> object:
    """Return the scores of two texts and the sizes of the calibrated batches."""
    import numpy as np

    from models.prediction import calibration as predict
    from service.inference import engine

    scaling = predict.LogitScaling(1.0, 1.0, (0.0, 0.0, 0.0))
    with patch.object(predict, "probabilities", wraps=predict.probabilities) as probabilities:
        values = vars(engine)["calibrate_logits"](np.array([[0, 1, 2], [2, 1, 0]], np.float32), [scaling, scaling])
    return [np.round(values, 2).tolist(), [len(call.args[0]) for call in probabilities.call_args_list]]


def arena_is_enabled(folder: Path) -> object:
    from models.runtime.onnx import OnnxRuntime
    from tests.support.tiny_bundle import tiny_bundle

    runtime = OnnxRuntime(tiny_bundle(folder) / "model.int8.onnx")
    return runtime._session.get_session_options().enable_cpu_mem_arena


def requests_per_call(folder: Path) -> object:
    """Return the number of requests per call, for six concurrent requests to a single replica."""
    from service.cluster.remote import RemotePredictor
    from service.inference.predictor import Item
    from service.telemetry.metrics import Metrics
    from tests.support import fake_model as fakes
    from tests.support.fake_handle import LIMITS, Handle, answering

    async def send_six() -> list[int]:
        handle, metrics = Handle(), Metrics(folder / "metrics")
        counts = (metrics.task("sentiment"), metrics.calls("sentiment"))
        remote = RemotePredictor(fakes.make_bundle(folder), handle, handle.count, LIMITS, *counts)
        await remote.start()
        async with answering(handle):
            await asyncio.gather(*(remote.predict([Item("good")]) for _ in range(6)))
        await remote.stop()
        return [len(sent.requests) for sent in handle.sent]

    return asyncio.run(send_six())


class _SlowPredictor:
    """A predictor that yields to the event loop twice and counts the texts."""

    bundle: Any = None
    ready = healthy = True
    texts = 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def predict(self, items: Any, *_more: object) -> Any:
        from service.inference.predictor import Classification, PredictionBatch, Timings

        self.texts += len(items)
        for _ in range(2):
            await asyncio.sleep(0)
        classification = Classification(3, False, 1, {"negative": 0.1, "neutral": 0.2, "positive": 0.7})
        return PredictionBatch(tuple(classification for _ in items), Timings(0.0, 0.0, 0.0))


class _NullMetrics:
    """Metrics that count nothing."""

    def count_outcomes(self, _: object) -> None: ...

    def count_shared(self, _: int) -> None: ...


Effect = Callable[[Path], object]
_NAMES = ["RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_event_stats"]
_SCORES = [[0.05, 0.2, 0.75], [0.75, 0.2, 0.05]]

EFFECTS: Mapping[str, tuple[Effect, object, object]] = {
    "haproxy": (ray_variables, _NAMES, _NAMES[1:]),
    "throughput": (ray_variables, _NAMES, [_NAMES[0], _NAMES[2]]),
    "idle-loops": (ray_variables, _NAMES, _NAMES[:2]),
    "direct-route": (fastapi_reads_body, False, True),
    "near-lengths": (batch_positions, [0, 2, 3, 4], [0, 1, 2]),
    "batching": (batch_positions, [0, 2, 3, 4], [0]),
    "in-flight": (computed_texts, 1, 2),
    "calibration": (calibrated_scores, [_SCORES, [2]], [_SCORES, [1, 1]]),
    "arena": (arena_is_enabled, False, True),
    "coalescing": (requests_per_call, [6], [1, 1, 1, 1, 1, 1]),
}
"""By lever: the effect, and its value with the lever on and off."""


def main() -> None:
    name, folder = sys.argv[1:]
    print(json.dumps(EFFECTS[name][0](Path(folder))))


if __name__ == "__main__":
    main()
