"""The engine alone: what one text costs before anything is served.

One text after another through Heed's engine, queue and inference thread included, in a process of its own; what one
connection over HTTP takes longer than this is the price of serving. As a command it is that process.
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
class Alone:
    texts_per_s: float
    p50_ms: float
    p99_ms: float


def measure(bundle: Path, texts: Sequence[str], seconds: float) -> Alone:
    with tempfile.TemporaryDirectory() as folder:
        asked = json.dumps([str(bundle), folder, list(texts), seconds])
        command = [sys.executable, "-m", "tests.bench.serving.engine_only"]
        done = subprocess.run(command, input=asked, stdout=subprocess.PIPE, text=True, check=True)
    return Alone(*json.loads(done.stdout.splitlines()[-1]))


def _engine(bundle: Path, folder: Path) -> Engine:
    """As a replica builds it, with the default settings."""
    loaded = load_bundle(bundle)
    return open_engine(loaded, Settings(), Metrics(folder).task(loaded.task.name))


async def _latencies_s(engine: Engine, texts: Sequence[str], seconds: float) -> list[float]:
    await engine.start()
    found: list[float] = []
    ends_s = time.perf_counter() + seconds
    for text in cycle(texts):
        started_s = time.perf_counter()
        await engine.predict([Item(text)])
        ended_s = time.perf_counter()
        found.append(ended_s - started_s)
        if ended_s >= ends_s:
            break
    await engine.stop()
    return found


def main() -> None:
    bundle, folder, texts, seconds = json.loads(sys.stdin.read())
    found = asyncio.run(_latencies_s(_engine(Path(bundle), Path(folder)), texts, seconds))
    print(json.dumps([len(found) / sum(found), percentile_ms(found, 50), percentile_ms(found, 99)]))


if __name__ == "__main__":
    main()
