"""The batcher at 150 % of its model's capacity, in simulated time: its answers come in time."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Coroutine, Sequence

import numpy as np
from numpy.typing import NDArray

from models.text.encoding import Encoding
from service.errors import Problem
from service.inference.batch_policy import BatchLimits
from service.inference.batcher import Batcher
from tests.support.batching import text

LIMITS = BatchLimits(batch_tokens=2048, batch_items=16, queue_tokens=65_536)
PATIENCE_S = 1.0
SECONDS = 12.0
LENGTHS = (8, 12, 16, 16, 20, 20, 24, 32)  # repeated
TOKEN_S, BATCH_S = 1 / 4000, 0.002
# Texts per second in full batches of equal lengths, an upper bound.
CAPACITY = 16 / (BATCH_S + 16 * sum(LENGTHS) / len(LENGTHS) * TOKEN_S)


class Simulation:
    """A batcher whose model moves the clock. While it works, time passes, and the texts that are due arrive.

    If `with_deadlines`, each text has a deadline.
    """

    def __init__(self, with_deadlines: bool) -> None:
        self.now_s = 0.0
        self.ended: Counter[str] = Counter()
        self._with_deadlines = with_deadlines
        self._batcher = Batcher(self._infer, LIMITS, lambda _: None, lambda _: None, clock=self.clock)
        self._arrived = 0
        self._callers: set[asyncio.Task[None]] = set()

    def clock(self) -> float:
        return self.now_s

    async def run(self) -> None:
        """Run the batcher until all requests have ended."""
        self._loop = asyncio.get_running_loop()
        self._batcher.start()
        await self._arrive()
        while self.now_s < SECONDS or self._callers:
            await asyncio.wait(self._callers)
        await self._batcher.stop()

    @property
    def _due_s(self) -> float:
        due_s = self._arrived / (1.5 * CAPACITY)
        return due_s if due_s < SECONDS else math.inf

    def _infer(self, texts: Sequence[Encoding]) -> NDArray[np.float64]:
        self._run_in_loop(self._settle())
        end_s = self.now_s + BATCH_S + max(encoding.length for encoding in texts) * len(texts) * TOKEN_S
        while self._due_s <= end_s:
            self.now_s = self._due_s
            self._run_in_loop(self._arrive())
        self.now_s = end_s
        return np.zeros((len(texts), 3))

    def _run_in_loop(self, step: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(step, self._loop).result(60)

    async def _settle(self) -> None:
        """Let callers process their answers."""
        for _ in range(10):
            await asyncio.sleep(0)

    async def _arrive(self) -> None:
        caller = asyncio.create_task(self._call(text(LENGTHS[self._arrived % len(LENGTHS)]), self.now_s + PATIENCE_S))
        self._callers.add(caller)
        caller.add_done_callback(self._callers.discard)
        self._arrived += 1
        await asyncio.sleep(0)  # until it is refused or waits

    async def _call(self, encoding: Encoding, deadline_s: float) -> None:
        try:
            (outcome,) = await self._batcher.run([encoding], deadline_s if self._with_deadlines else math.inf)
        except Problem as problem:
            self.ended[problem.code] += 1
            return
        code = outcome.code if isinstance(outcome, Problem) else "in time" if self.now_s <= deadline_s else "late"
        self.ended[code] += 1


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose timers follow the simulation."""

    simulation: Simulation

    def time(self) -> float:
        return self.simulation.now_s


def simulate(with_deadlines: bool) -> tuple[Counter[str], float]:
    """Return how requests ended, and how many texts full batches could have answered meanwhile."""
    simulation = Simulation(with_deadlines)
    loop = Loop()
    loop.simulation = simulation
    try:
        loop.run_until_complete(simulation.run())
    finally:
        loop.close()
    return simulation.ended, CAPACITY * simulation.now_s


def test_with_deadlines_nearly_all_capacity_becomes_answers_in_time() -> None:
    ended, possible = simulate(with_deadlines=True)
    assert ended["in time"] >= 0.95 * possible
    assert ended["late"] <= 0.01 * ended["in time"]
    assert ended["overloaded"] > ended["deadline_exceeded"]


def test_without_deadlines_most_answers_come_too_late() -> None:
    ended, possible = simulate(with_deadlines=False)
    assert ended["in time"] <= 0.5 * possible
    assert ended["late"] > ended["in time"]
