"""The joint throughput of several replicas of a bundle: each is a process with the service's batcher and no server.

The texts are made up. Their token IDs are random, and their lengths are realistic: many short, few long. As a command,
this module is one of those processes. It runs one trial per line of input and ends with its input. It knows neither
HTTP nor Ray, nor the use of the rates.
"""

from __future__ import annotations

import asyncio
import json
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
import tokenizers
from numpy.typing import NDArray

from models.bundle import Bundle, load_bundle
from models.runtime.protocol import Runtime
from models.text.encoding import Encoding, collate
from service.errors import Problem
from service.inference.assembly import open_model
from service.inference.batch_policy import BatchLimits
from service.inference.batcher import Batcher
from service.telemetry import logs
from service.telemetry.batch_report import BatchReport

MIN_LENGTH, MAX_LENGTH = 8, 256
CONCURRENCY = {"cpu": 64, "cuda": 512}
"""Texts that wait at one replica, by device: enough to fill the batches that are efficient there."""

_TEXTS = 128
_SEED = 3
WARM_UP_SHARE = 0.25  # of the time, added before it: the queue fills, and a GPU sees its shapes
_START_TIMEOUT_S = 120.0
_UNBOUNDED = 1 << 40  # tokens in the queue, because no caller here is refused


class ThroughputError(Exception):
    """A process could not start or did not answer. The message is one line."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Replicas on one machine."""

    replicas: int
    threads: int  # in each replica


@dataclass(frozen=True, slots=True)
class _Trial:
    batch_tokens: int
    batch_items: int
    seconds: float


class ReplicaProcesses:
    """Processes that are loaded and warm inside the `with` block. They end with it."""

    def __init__(self, bundle: Path, layout: Layout, device: Literal["cpu", "cuda"]) -> None:
        command = [sys.executable, "-c", "from service.tuning.throughput import main; main()"]
        self._processes = [
            subprocess.Popen(
                [*command, str(bundle), str(layout.threads), device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # a Ctrl-C reaches only us, and we end the processes
            )
            for _ in range(layout.replicas)
        ]
        self.pss_bytes = 0
        """Proportional memory of the largest process so far."""

    def __enter__(self) -> ReplicaProcesses:
        try:
            self._read_replies(_START_TIMEOUT_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with suppress(BrokenPipeError):  # on unsent input
                process.communicate()

    def tokens_per_s(self, batch_tokens: int, batch_items: int, seconds: float) -> float:
        """Measure the joint tokens per second of all processes, without padding. Raises ThroughputError."""
        trial = json.dumps(asdict(_Trial(batch_tokens, batch_items, seconds)))
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has ended, as its missing reply will show
                print(trial, file=process.stdin, flush=True)
        return sum(reply["tokens_per_s"] for reply in self._read_replies(_START_TIMEOUT_S + 2 * seconds))

    def _read_replies(self, timeout_s: float) -> list[dict[str, float]]:
        deadline_s = time.monotonic() + timeout_s
        replies = [_read_reply(process, deadline_s) for process in self._processes]
        self.pss_bytes = max(self.pss_bytes, *(int(reply["pss_bytes"]) for reply in replies))
        return replies


def _read_reply(process: subprocess.Popen[str], deadline_s: float) -> dict[str, float]:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
        raise ThroughputError("a measuring process has not answered in time")
    line = process.stdout.readline()
    if not line:
        raise ThroughputError(f"a measuring process ended unexpectedly ({process.wait()}); is memory short?")
    reply = json.loads(line)
    if "error" in reply:
        raise ThroughputError(reply["error"])
    return dict(reply)


# The rest runs in the processes.


def sample_lengths(max_tokens: int) -> list[int]:
    """Return lengths in tokens, in a fixed random order, with as many from 8 to 16 as from 128 to 256."""
    spread = min(MAX_LENGTH, max_tokens) / MIN_LENGTH
    lengths = [round(MIN_LENGTH * spread ** ((index + 0.5) / _TEXTS)) for index in range(_TEXTS)]
    Random(_SEED).shuffle(lengths)
    return lengths


def _sample_texts(bundle: Bundle) -> list[Encoding]:
    vocabulary = tokenizers.Tokenizer.from_file(str(bundle.tokenizer)).get_vocab_size()
    rng = np.random.default_rng(_SEED)
    return [
        Encoding(rng.integers(vocabulary, size=length), np.zeros(length, np.int64), False, "en")
        for length in sample_lengths(bundle.max_tokens)
    ]


async def measure_throughput(
    runtime: Runtime,
    pad_id: int,
    texts: Sequence[Encoding],
    callers: int,
    limits: BatchLimits,
    seconds: float,
    together: int = 1,
) -> float:
    """Measure tokens per second, without padding, with `callers` that each send a request after every answer.

    Each request carries `together` texts, as a gateway's call carries all texts that wait there.
    """
    reports: list[tuple[float, int]] = []

    def report(batch: BatchReport) -> None:
        reports.append((time.monotonic(), batch.tokens))

    batcher: Batcher[Encoding, NDArray[np.float64]] = Batcher(
        lambda batch: runtime.run(collate(batch, pad_id)).astype(np.float64), limits, report, lambda _: None
    )
    batcher.start()
    remaining = cycle(texts)
    tasks = [asyncio.create_task(_send_requests(batcher, remaining, together)) for _ in range(callers)]
    ended, _ = await asyncio.wait(tasks, timeout=WARM_UP_SHARE * seconds)
    first = max(0, len(reports) - 1)
    if not ended:
        ended, _ = await asyncio.wait(tasks, timeout=seconds)
    # The rate is measured from the end of one batch to the end of another. A slow machine may not have run two yet.
    while not ended and len(reports) < first + 2:
        ended, _ = await asyncio.wait(tasks, timeout=seconds / 10)
    for task in tasks:
        task.cancel()
    await batcher.stop()
    for task in ended:
        task.result()  # raises the error that ended it
    counted = reports[first:]
    return sum(tokens for _, tokens in counted[1:]) / (counted[-1][0] - counted[0][0])


async def _send_requests(
    batcher: Batcher[Encoding, NDArray[np.float64]], texts: Iterator[Encoding], together: int
) -> None:
    while request := list(islice(texts, together)):
        for outcome in await batcher.run(request):
            if isinstance(outcome, Problem):
                raise outcome


def _pss_bytes() -> int:
    """Return this process's memory, with each shared page divided by the number of processes that share it."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _serve(bundle: Bundle, threads: int, device: Literal["cpu", "cuda"]) -> None:
    tokenizer, runtime = open_model(bundle, threads, device)
    pad_id, texts = tokenizer.pad_id, _sample_texts(bundle)
    runtime.run(collate([max(texts, key=lambda text: text.length)], pad_id))
    print(json.dumps({"pss_bytes": _pss_bytes()}), flush=True)
    for line in sys.stdin:
        trial = _Trial(**json.loads(line))
        limits = BatchLimits(trial.batch_tokens, trial.batch_items, _UNBOUNDED, bundle.max_tokens)
        rate = asyncio.run(measure_throughput(runtime, pad_id, texts, CONCURRENCY[device], limits, trial.seconds))
        print(json.dumps({"tokens_per_s": rate, "pss_bytes": _pss_bytes()}), flush=True)


def main() -> None:
    """Run one measuring process. Its arguments are the bundle's folder, the threads and the device."""
    bundle, threads, device = sys.argv[1:]
    logs.configure("tune", "error")  # not to the standard output, which carries the replies
    try:
        _serve(load_bundle(Path(bundle)), int(threads), "cuda" if device == "cuda" else "cpu")
    except Exception as error:  # the parent reports it, whatever it is
        print(json.dumps({"error": str(error).split("\n")[0] or type(error).__name__}), flush=True)
