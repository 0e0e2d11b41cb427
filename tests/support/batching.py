"""A model that can be held and a running batcher, for tests of the batcher."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.text.encoding import Encoding
from service.errors import Problem
from service.inference.batch_policy import BatchLimits, InferenceResult
from service.inference.batcher import Batcher
from service.telemetry.batch_report import BatchReport

LIMITS = BatchLimits(batch_tokens=64, batch_items=4, queue_tokens=1000)
POISON = 666


def text(length: int, number: int = 0) -> Encoding:
    """Return a text of this length, whose first token is its number."""
    ids = np.zeros(length, np.int64)
    ids[0] = number
    return Encoding(ids, np.zeros(length, np.int64), truncated=False, language="en")


def number(outcome: InferenceResult[NDArray[np.float64]] | Problem) -> int:
    """Return the number of the text that was answered."""
    assert isinstance(outcome, InferenceResult)
    return int(outcome.row[0])


@dataclass
class Clock:
    """A clock that stands still until a test sets it."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


class HeldModel:
    """A model that answers each text with its number and length, and waits while `gate` is closed.

    `entered` is set when a batch arrives. A batch with `POISON` fails.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []  # numbers of the texts
        self.threads: list[int] = []  # thread of each batch
        self.failure: BaseException | None = None
        self.rows_lost = 0

    def infer(self, texts: Sequence[Encoding]) -> NDArray[np.float64]:
        numbers = [int(text.ids[0]) for text in texts]
        self.threads.append(threading.get_ident())
        self.batches.append(numbers)
        self.entered.set()
        assert self.gate.wait(60)
        if self.failure:
            raise self.failure
        if POISON in numbers:
            raise ValueError("poison")
        rows = [[number, text.length] for number, text in zip(numbers, texts, strict=True)]
        return np.array(rows, np.float64)[self.rows_lost :]

    @property
    def seen(self) -> list[int]:
        """The numbers of all texts that reached the model."""
        return [number for batch in self.batches for number in batch]


class RunningBatcher:
    """A batcher with its model, and what it reported."""

    def __init__(self, limits: BatchLimits, clock: Callable[[], float]) -> None:
        self.model = HeldModel()
        self.reports: list[BatchReport] = []
        self.busy_at_reports: list[bool] = []
        self.depths = [0]
        self.batcher = Batcher(self.model.infer, limits, self._report, self.depths.append, clock=clock)

    def _report(self, report: BatchReport) -> None:
        self.reports.append(report)
        self.busy_at_reports.append(self.batcher.busy)

    def begin(self, texts: Sequence[Encoding], deadline_s: float = float("inf")) -> asyncio.Task[Any]:
        """Start a request and return its task."""
        return asyncio.ensure_future(self.batcher.run(texts, deadline_s))

    async def hold(self) -> asyncio.Task[Any]:
        """Close the gate and let one text of 3 tokens, number 0, hold the model."""
        self.model.gate.clear()
        self.model.entered.clear()
        holding = self.begin([text(3)])
        assert await asyncio.to_thread(self.model.entered.wait, 60)
        return holding

    async def until_waiting(self, count: int) -> None:
        """Return as soon as this number of texts waits."""
        while self.depths[-1] != count:
            await asyncio.sleep(0)

    async def measure_slowness(self, clock: Clock) -> None:
        """Let the batcher measure 3 tokens in half a second; afterwards the clock stands still."""
        holding = await self.hold()
        clock.now_s = 0.5
        self.model.gate.set()
        await holding


@asynccontextmanager
async def running(
    limits: BatchLimits = LIMITS, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[RunningBatcher]:
    """Run a batcher until the end of the block, and check that no callback of the event loop failed."""
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    run = RunningBatcher(limits, clock)
    run.batcher.start()
    try:
        yield run
    finally:
        run.model.gate.set()
        await asyncio.wait_for(run.batcher.stop(), 60)
    assert not faults
