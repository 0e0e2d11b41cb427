"""The engine without a server: the latency of single texts.

Single texts run in sequence through Heed's engine, including its queue and inference thread, in a separate process. The
extra latency of a connection over HTTP is the cost of serving. As a command, this module is that process.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from models.bundle import load_bundle
from service.inference.assembly import open_engine
from service.inference.engine import Engine
from service.inference.predictor import Item
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.bench.harness.closed_loop import percentile_ms


@dataclass(frozen=True, slots=True)
class EngineSpeed:
    texts_per_s: float
    p50_ms: float
    p99_ms: float


def measure(bundle: Path, texts: Sequence[str], seconds: float) -> EngineSpeed:
    with tempfile.TemporaryDirectory() as folder:
        arguments = json.dumps([str(bundle), folder, list(texts), seconds])
        command = [sys.executable, "-m", "tests.bench.serving.engine_only"]
        done = subprocess.run(command, input=arguments, stdout=subprocess.PIPE, text=True, check=True)
    return EngineSpeed(*json.loads(done.stdout.splitlines()[-1]))


def _engine(bundle: Path, folder: Path) -> Engine:
    """Return the engine that a replica opens with the default settings."""
    loaded = load_bundle(bundle)
    return open_engine(loaded, Settings(), Metrics(folder).task(loaded.task.name))


async def _latencies_s(engine: Engine, texts: Sequence[str], seconds: float) -> list[float]:
    await engine.start()
    latencies_s: list[float] = []
    ends_s = time.perf_counter() + seconds
    for text in cycle(texts):
        started_s = time.perf_counter()
        await engine.predict([Item(text)])
        ended_s = time.perf_counter()
        latencies_s.append(ended_s - started_s)
        if ended_s >= ends_s:
            break
    await engine.stop()
    return latencies_s


def main() -> None:
    bundle, folder, texts, seconds = json.loads(sys.stdin.read())
    latencies_s = asyncio.run(_latencies_s(_engine(Path(bundle), Path(folder)), texts, seconds))
    print(
        json.dumps(
            [len(latencies_s) / sum(latencies_s), percentile_ms(latencies_s, 50), percentile_ms(latencies_s, 99)]
        )
    )


if __name__ == "__main__":
    main()
