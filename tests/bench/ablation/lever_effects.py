"""What each patched lever changes, small enough to see without a server. For `test_ablation`.

Run as a command in a process with the lever off: prints the effect of that name. Imports inside the functions, so that
each process loads only what its lever is in.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch


def variables(folder: Path) -> object:
    """Of Ray, that the cluster is started with."""
    from service.cluster.local import build_environment
    from service.settings import Settings

    composed = build_environment(Settings(), folder, {})
    names = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_event_stats")
    return [name for name in names if name in composed]


def handling(folder: Path) -> object:
    """Of the hot route: whether FastAPI reads the body."""
    from fastapi.routing import APIRoute

    from service.api.gateway import create_app
    from service.settings import Settings
    from service.telemetry.metrics import Metrics

    app = create_app({"sentiment": _Twice()}, Settings(), Metrics(folder / "metrics"))
    (route,) = (one for one in app.routes if isinstance(one, APIRoute) and one.path == "/v1/sentiment")
    return route.body_field is not None


def batch(_: Path) -> object:
    """Which of the waiting texts run together."""
    from service.inference.batch_policy import BatchLimits, next_batch

    return next_batch([10, 200, 11, 10, 10], BatchLimits(batch_tokens=650, batch_items=16, queue_tokens=4096))


def computed(_: Path) -> object:
    """Texts, of two callers that ask the same at once."""
    from service.inference.cache import CachedPredictor
    from service.inference.predictor import Item

    behind = _Twice()

    async def ask() -> None:
        asked = CachedPredictor(behind, 0, _Counts())  # type: ignore[arg-type]
        await asyncio.gather(*(asked.predict([Item("the same")]) for _ in range(2)))

    asyncio.run(ask())
    return behind.texts


def scores(_: Path) -> object:
    """Of two texts, and how many are calibrated at a time."""
    import numpy as np

    from models.prediction import calibration as predict
    from service.inference import engine

    scaling = predict.LogitScaling(1.0, 1.0, (0.0, 0.0, 0.0))
    with patch.object(predict, "probabilities", wraps=predict.probabilities) as probabilities:
        found = vars(engine)["calibrate_logits"](np.array([[0, 1, 2], [2, 1, 0]], np.float32), [scaling, scaling])
    return [np.round(found, 2).tolist(), [len(call.args[0]) for call in probabilities.call_args_list]]


def arena(folder: Path) -> object:
    from models.runtime.onnx import OnnxRuntime
    from tests.support.tiny_bundle import tiny_bundle

    runtime = OnnxRuntime(tiny_bundle(folder) / "model.int8.onnx")
    return runtime._session.get_session_options().enable_cpu_mem_arena


def calls(folder: Path) -> object:
    """Requests in each call, of six that come at once to a single replica."""
    from service.cluster.remote import RemotePredictor
    from service.inference.predictor import Item
    from service.telemetry.metrics import Metrics
    from tests.service.cluster.test_remote import LIMITS, Handle, answering
    from tests.support import fake_model as fakes

    async def ask() -> list[int]:
        handle, metrics = Handle(), Metrics(folder / "metrics")
        counts = (metrics.task("sentiment"), metrics.calls("sentiment"))
        remote = RemotePredictor(fakes.make_bundle(folder), handle, handle.count, LIMITS, *counts)
        await remote.start()
        async with answering(handle):
            await asyncio.gather(*(remote.predict([Item("good")]) for _ in range(6)))
        await remote.stop()
        return [len(sent.requests) for sent in handle.sent]

    return asyncio.run(ask())


class _Twice:
    """A predictor that takes two turns of the event loop and counts the texts."""

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
        rated = Classification(3, False, 1, {"negative": 0.1, "neutral": 0.2, "positive": 0.7})
        return PredictionBatch(tuple(rated for _ in items), Timings(0.0, 0.0, 0.0))


class _Counts:
    """Metrics that nobody reads."""

    def count_outcomes(self, _: object) -> None: ...

    def count_shared(self, _: int) -> None: ...


Effect = Callable[[Path], object]
_NAMES = ["RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_THROUGHPUT_OPTIMIZED", "RAY_event_stats"]
_SCORES = [[0.05, 0.2, 0.75], [0.75, 0.2, 0.05]]

EFFECTS: Mapping[str, tuple[Effect, object, object]] = {
    "haproxy": (variables, _NAMES, _NAMES[1:]),
    "throughput": (variables, _NAMES, [_NAMES[0], _NAMES[2]]),
    "idle-loops": (variables, _NAMES, _NAMES[:2]),
    "direct-route": (handling, False, True),
    "near-lengths": (batch, [0, 2, 3, 4], [0, 1, 2]),
    "batching": (batch, [0, 2, 3, 4], [0]),
    "in-flight": (computed, 1, 2),
    "calibration": (scores, [_SCORES, [2]], [_SCORES, [1, 1]]),
    "arena": (arena, False, True),
    "coalescing": (calls, [6], [1, 1, 1, 1, 1, 1]),
}
"""By lever: the effect, what it is with the lever on, and what with the lever off."""


def main() -> None:
    name, folder = sys.argv[1:]
    print(json.dumps(EFFECTS[name][0](Path(folder))))


if __name__ == "__main__":
    main()
