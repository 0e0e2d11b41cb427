"""The limit: what the machine gives when nothing but the graph runs, one process per core with one thread each.

Texts are tokenised beforehand and grouped by length; the batch size is the best of those tried. As a command it is one
of the processes; `measure` starts them together. No server, no queue, no answers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random

from models.bundle import load_bundle
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch, collate
from models.text.tokenizer import Tokenizer
from tests.bench.footprint.__main__ import pss_bytes

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Limit:
    batch_size: int
    texts_per_s: float
    cpu_ms_per_text: float
    pss_bytes: int


def best(bundle: Path, texts: Sequence[str], processes: int, seconds: float) -> Limit:
    """The fastest of the batch sizes, each tried for so many seconds."""
    tried = [measure(bundle, texts, processes, size, seconds) for size in BATCH_SIZES]
    return max(tried, key=lambda limit: limit.texts_per_s)


def measure(bundle: Path, texts: Sequence[str], processes: int, batch_size: int, seconds: float) -> Limit:
    with tempfile.NamedTemporaryFile("w") as file:
        json.dump(list(texts), file)
        file.flush()
        arguments = [str(bundle), file.name, str(batch_size), str(seconds)]
        command = [sys.executable, "-m", "tests.bench.serving.bare_runtime", *arguments]
        started = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(processes)]
        for process in started:
            _read(process)  # loaded and warm
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
        found = [_read(process) for process in started]
        for process in started:
            process.wait()
    done = sum(one["texts"] for one in found)
    return Limit(
        batch_size,
        sum(one["texts"] / one["seconds"] for one in found),
        sum(one["cpu_s"] for one in found) / done * 1000,
        round(sum(one["pss_bytes"] for one in found)),
    )


def _read(process: subprocess.Popen[bytes]) -> dict[str, float]:
    assert process.stdout is not None
    found: dict[str, float] = json.loads(process.stdout.readline())
    return found


def _batches(bundle: Path, texts: Sequence[str], size: int) -> tuple[OnnxRuntime, list[Batch]]:
    """Neighbours in length together; the batches in a random order, so that any part of them is like the whole."""
    loaded = load_bundle(bundle)
    tokenizer = Tokenizer(loaded.tokenizer, loaded.max_tokens)
    tokens = sorted((tokenizer.encode(text) for text in texts), key=lambda one: one.length)
    batches = [collate(tokens[start : start + size], tokenizer.pad_id) for start in range(0, len(tokens), size)]
    Random(os.getpid()).shuffle(batches)
    return OnnxRuntime(loaded.graph, threads=1), batches


def _work(runtime: OnnxRuntime, batches: Sequence[Batch], seconds: float) -> dict[str, float]:
    cpu_s, started_s, texts = time.process_time(), time.perf_counter(), 0
    for batch in cycle(batches):
        runtime.run(batch)
        texts += len(batch.ids)
        elapsed_s = time.perf_counter() - started_s
        if elapsed_s >= seconds:
            break
    used_s = time.process_time() - cpu_s
    return {"texts": texts, "seconds": elapsed_s, "cpu_s": used_s, "pss_bytes": pss_bytes(os.getpid())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("batch_size", type=int)
    parser.add_argument("seconds", type=float)
    given = parser.parse_args()
    runtime, batches = _batches(given.bundle, json.loads(given.texts.read_text(encoding="utf-8")), given.batch_size)
    runtime.run(batches[0])
    print("{}", flush=True)
    sys.stdin.read()  # closed when all processes are ready
    print(json.dumps(_work(runtime, batches, given.seconds)), flush=True)


if __name__ == "__main__":
    main()
