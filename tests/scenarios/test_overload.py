"""The batcher at 150 % of what its model can do, in simulated time: what is answered is answered in time."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Coroutine, Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from models.text.encoding import Encoding
from service.errors import Problem
from service.inference import batcher as batching
from service.inference.batch_policy import BatchLimits
from service.inference.batcher import Batcher
from tests.service.inference.test_batcher import text

LIMITS = BatchLimits(batch_tokens=2048, batch_items=16, queue_tokens=65_536)
PATIENCE_S = 1.0
SECONDS = 12.0
LENGTHS = (8, 12, 16, 16, 20, 20, 24, 32)  # over and over
TOKEN_S, BATCH_S = 1 / 4000, 0.002
# Of full batches of texts of one length: more than anything else gets done.
CAPACITY = 16 / (BATCH_S + 16 * sum(LENGTHS) / len(LENGTHS) * TOKEN_S)


class Simulation:
    """The model holds the clock: while it works, time passes, and the texts that are due by then come."""

    def __init__(self, stated: bool) -> None:
        self.now_s = 0.0
        self.ended: Counter[str] = Counter()
        self._stated = stated
        self._batcher = Batcher(self._infer, LIMITS, lambda _: None, lambda _: None)
        self._came = 0
        self._callers: set[asyncio.Task[None]] = set()

    def clock(self) -> float:
        return self.now_s

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._batcher.start()
        await self._come()
        while self.now_s < SECONDS or self._callers:
            await asyncio.wait(self._callers)
        await self._batcher.stop()

    @property
    def _due_s(self) -> float:
        due_s = self._came / (1.5 * CAPACITY)
        return due_s if due_s < SECONDS else math.inf

    def _infer(self, texts: Sequence[Encoding]) -> NDArray[np.float64]:
        self._until_done(self._settled())
        end_s = self.now_s + BATCH_S + max(one.length for one in texts) * len(texts) * TOKEN_S
        while self._due_s <= end_s:
            self.now_s = self._due_s
            self._until_done(self._come())
        self.now_s = end_s
        return np.zeros((len(texts), 3))

    def _until_done(self, step: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result(60)

    async def _settled(self) -> None:
        """Whoever got an answer has seen it."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def _come(self) -> None:
        caller = asyncio.create_task(self._call(text(LENGTHS[self._came % len(LENGTHS)]), self.now_s + PATIENCE_S))
        self._callers.add(caller)
        caller.add_done_callback(self._callers.discard)
        self._came += 1
        await asyncio.sleep(0)  # in which it is refused, or waits

    async def _call(self, given: Encoding, deadline_s: float) -> None:
        try:
            (outcome,) = await self._batcher.run([given], deadline_s if self._stated else math.inf)
        except Problem as problem:
            self.ended[problem.code] += 1
            return
        code = outcome.code if isinstance(outcome, Problem) else "in time" if self.now_s <= deadline_s else "late"
        self.ended[code] += 1


class Loop(asyncio.SelectorEventLoop):
    """Its timers follow the simulation."""

    simulation: Simulation

    def time(self) -> float:
        return self.simulation.now_s


def simulated(stated: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], float]:
    """How requests ended, and how many full batches could have answered meanwhile."""
    simulation = Simulation(stated)
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=simulation.clock))
    loop = Loop()
    loop.simulation = simulation
    try:
        loop.run_until_complete(simulation.run())
    finally:
        loop.close()
    return simulation.ended, CAPACITY * simulation.now_s


def test_who_says_how_long_it_waits_gets_all_that_the_model_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, possible = simulated(True, monkeypatch)
    assert ended["in time"] >= 0.95 * possible
    assert ended["late"] <= 0.01 * ended["in time"]
    assert ended["overloaded"] > ended["deadline_exceeded"]


def test_without_that_most_answers_come_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, possible = simulated(False, monkeypatch)
    assert ended["in time"] <= 0.5 * possible
    assert ended["late"] > ended["in time"]
