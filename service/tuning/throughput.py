"""What replicas of a bundle can do together: each a process of its own, with the batcher that serves and no server.

Texts are made up, with token ids drawn from the vocabulary and lengths as texts have them: many short, few long. As a
command this module is one of the processes; it answers one question for each line of its input and ends with it.
Knows neither HTTP nor Ray, and not what the rates are good for.
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
"""Texts that wait at one replica: enough to fill the batches that pay on such a device."""

_TEXTS = 128
_SEED = 3
WARM_UP_SHARE = 0.25  # of the time, in addition and before it: the queue fills, and a GPU sees its shapes
_START_S = 120.0
_UNBOUNDED = 1 << 40  # tokens in the queue: whoever asks here waits


class ThroughputError(Exception):
    """A process could not start or did not answer; the message is one line."""


@dataclass(frozen=True, slots=True)
class Layout:
    replicas: int
    threads: int  # of each


@dataclass(frozen=True, slots=True)
class _Asked:
    batch_tokens: int
    batch_items: int
    seconds: float


class ReplicaProcesses:
    """Processes that are loaded and warm inside the `with` block and gone after it."""

    def __init__(self, bundle: Path, layout: Layout, device: Literal["cpu", "cuda"]) -> None:
        command = [sys.executable, "-c", "from service.tuning.throughput import main; main()"]
        self._processes = [
            subprocess.Popen(
                [*command, str(bundle), str(layout.threads), device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,  # a Ctrl-C reaches only us, and we end them
            )
            for _ in range(layout.replicas)
        ]
        self.pss_bytes = 0
        """Proportional memory of the largest of them so far."""

    def __enter__(self) -> ReplicaProcesses:
        try:
            self._answers(_START_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with suppress(BrokenPipeError):  # what it was never told
                process.communicate()

    def tokens_per_s(self, batch_tokens: int, batch_items: int, seconds: float) -> float:
        """Tokens without padding, of all together; raises ThroughputError."""
        asked = json.dumps(asdict(_Asked(batch_tokens, batch_items, seconds)))
        for process in self._processes:
            assert process.stdin is not None
            with suppress(BrokenPipeError):  # it has ended, which its missing answer will tell
                print(asked, file=process.stdin, flush=True)
        return sum(answer["tokens_per_s"] for answer in self._answers(_START_S + 2 * seconds))

    def _answers(self, within_s: float) -> list[dict[str, float]]:
        ends_s = time.monotonic() + within_s
        answers = [_answer(process, ends_s) for process in self._processes]
        self.pss_bytes = max(self.pss_bytes, *(int(answer["pss_bytes"]) for answer in answers))
        return answers


def _answer(process: subprocess.Popen[str], ends_s: float) -> dict[str, float]:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], max(0.0, ends_s - time.monotonic()))[0]:
        raise ThroughputError("a process that measures has not answered in time")
    line = process.stdout.readline()
    if not line:
        raise ThroughputError(f"a process that measures ended by itself ({process.wait()}); is there memory for it?")
    answer = json.loads(line)
    if "error" in answer:
        raise ThroughputError(answer["error"])
    return dict(answer)


# What follows runs in the processes.


def lengths(longest: int) -> list[int]:
    """Of the texts, in tokens: as many of 8 to 16 as of 128 to 256, in a random order that is always the same."""
    spread = min(MAX_LENGTH, longest) / MIN_LENGTH
    found = [round(MIN_LENGTH * spread ** ((place + 0.5) / _TEXTS)) for place in range(_TEXTS)]
    Random(_SEED).shuffle(found)
    return found


def _texts(bundle: Bundle) -> list[Encoding]:
    vocabulary = tokenizers.Tokenizer.from_file(str(bundle.tokenizer)).get_vocab_size()
    rng = np.random.default_rng(_SEED)
    return [
        Encoding(rng.integers(vocabulary, size=length), np.zeros(length, np.int64), False, "en")
        for length in lengths(bundle.max_tokens)
    ]


async def measure(
    runtime: Runtime,
    pad: int,
    texts: Sequence[Encoding],
    callers: int,
    limits: BatchLimits,
    seconds: float,
    together: int = 1,
) -> float:
    """Tokens per second, without padding, of so many callers who ask again as soon as they are answered.

    Each asks for `together` texts at once, as gateways do for all that waits there.
    """
    reports: list[tuple[float, int]] = []

    def report(batch: BatchReport) -> None:
        reports.append((time.monotonic(), batch.tokens))

    batcher: Batcher[Encoding, NDArray[np.float64]] = Batcher(
        lambda batch: runtime.run(collate(batch, pad)).astype(np.float64), limits, report, lambda _: None
    )
    batcher.start()
    waiting = cycle(texts)
    asking = [asyncio.create_task(_ask(batcher, waiting, together)) for _ in range(callers)]
    ended, _ = await asyncio.wait(asking, timeout=WARM_UP_SHARE * seconds)
    first = max(0, len(reports) - 1)
    if not ended:
        ended, _ = await asyncio.wait(asking, timeout=seconds)
    # From the end of one batch to the end of another; a slow machine may not have done two yet.
    while not ended and len(reports) < first + 2:
        ended, _ = await asyncio.wait(asking, timeout=seconds / 10)
    for task in asking:
        task.cancel()
    await batcher.stop()
    for task in ended:
        task.result()  # raises what has ended it
    counted = reports[first:]
    return sum(tokens for _, tokens in counted[1:]) / (counted[-1][0] - counted[0][0])


async def _ask(batcher: Batcher[Encoding, NDArray[np.float64]], texts: Iterator[Encoding], together: int) -> None:
    while asked := list(islice(texts, together)):
        for outcome in await batcher.run(asked):
            if isinstance(outcome, Problem):
                raise outcome


def _pss_bytes() -> int:
    """This process's memory, each shared page divided by the processes that share it."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def _serve(bundle: Bundle, threads: int, device: Literal["cpu", "cuda"]) -> None:
    tokenizer, runtime = open_model(bundle, threads, device)
    pad, texts = tokenizer.pad_id, _texts(bundle)
    runtime.run(collate([max(texts, key=lambda text: text.length)], pad))
    print(json.dumps({"pss_bytes": _pss_bytes()}), flush=True)
    for line in sys.stdin:
        asked = _Asked(**json.loads(line))
        limits = BatchLimits(asked.batch_tokens, asked.batch_items, _UNBOUNDED, bundle.max_tokens)
        rate = asyncio.run(measure(runtime, pad, texts, CONCURRENCY[device], limits, asked.seconds))
        print(json.dumps({"tokens_per_s": rate, "pss_bytes": _pss_bytes()}), flush=True)


def main() -> None:
    """Arguments: folder of the bundle, threads, device."""
    bundle, threads, device = sys.argv[1:]
    logs.configure("error")  # away from the standard output, which is for answers
    try:
        _serve(load_bundle(Path(bundle)), int(threads), "cuda" if device == "cuda" else "cpu")
    except Exception as error:  # whatever it is, the one who asked has to tell it
        print(json.dumps({"error": str(error).split("\n")[0] or type(error).__name__}), flush=True)
