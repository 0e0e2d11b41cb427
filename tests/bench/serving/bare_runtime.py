"""The limit: the throughput of the bare graph, with one process per core and one thread per process.

Texts are tokenised beforehand and grouped by length, and the batch size is the best of BATCH_SIZES. As a command, it is
such a process; `measure` starts them together. There is no server and no queue, and answers are dropped.
"""

from __future__ import annotations

import argparse
import json
import os
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
from tests.bench.harness.parallel import run_together, wait_for_start

BATCH_SIZES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Limit:
    batch_size: int
    texts_per_s: float
    cpu_ms_per_text: float
    pss_bytes: int


def find_best_batch_size(bundle: Path, texts: Sequence[str], processes: int, seconds: float) -> Limit:
    """Return the limit with the best batch size. Each size is measured for `seconds`."""
    limits = [measure(bundle, texts, processes, size, seconds) for size in BATCH_SIZES]
    return max(limits, key=lambda limit: limit.texts_per_s)


def measure(bundle: Path, texts: Sequence[str], processes: int, batch_size: int, seconds: float) -> Limit:
    with tempfile.NamedTemporaryFile("w") as file:
        json.dump(list(texts), file)
        file.flush()
        arguments = [str(bundle), file.name, str(batch_size), str(seconds)]
        command = [sys.executable, "-m", "tests.bench.serving.bare_runtime", *arguments]
        results = run_together(command, processes)
    total = sum(result["texts"] for result in results)
    return Limit(
        batch_size,
        sum(result["texts"] / result["seconds"] for result in results),
        sum(result["cpu_s"] for result in results) / total * 1000,
        round(sum(result["pss_bytes"] for result in results)),
    )


def _batches(bundle: Path, texts: Sequence[str], size: int) -> tuple[OnnxRuntime, list[Batch]]:
    """Return batches of similar lengths, in a random order so that every prefix is like the whole."""
    loaded = load_bundle(bundle)
    tokenizer = Tokenizer.from_bundle(loaded)
    encodings = sorted((tokenizer.encode(text) for text in texts), key=lambda encoding: encoding.length)
    batches = [collate(encodings[start : start + size], tokenizer.pad_id) for start in range(0, len(encodings), size)]
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
    options = parser.parse_args()
    runtime, batches = _batches(
        options.bundle, json.loads(options.texts.read_text(encoding="utf-8")), options.batch_size
    )
    runtime.run(batches[0])
    wait_for_start()
    print(json.dumps(_work(runtime, batches, options.seconds)), flush=True)


if __name__ == "__main__":
    main()
