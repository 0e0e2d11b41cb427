"""How a caller waits and is woken, exactly once."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.errors import Problem
from service.inference.batch_policy import InferenceResult, Sized

Row = TypeVar("Row")

Work = TypeVar("Work", bound=Sized)


@dataclass(slots=True, eq=False)
class Caller:
    """The texts of one caller, who is woken once, by the last of them."""

    ended: asyncio.Future[None]
    left: int = 0


@dataclass(slots=True, eq=False)
class QueuedItem(Generic[Work, Row]):
    work: Work
    call: Caller
    deadline_s: float
    since_s: float
    outcome: InferenceResult[Row] | Problem | None = None  # set in the event loop

    def wanted(self, now_s: float) -> bool:
        return self.outcome is None and now_s < self.deadline_s and not self.call.ended.done()


def complete(item: QueuedItem[Work, Row], outcome: InferenceResult[Row] | Problem) -> None:
    if item.outcome is None and not item.call.ended.done():
        item.outcome = outcome
        item.call.left -= 1
        if not item.call.left:
            item.call.ended.set_result(None)


async def wait_until_done(call: asyncio.Future[None], left_s: float) -> None:
    """Wait until the call has ended, at most `left_s` seconds."""
    if left_s == math.inf:
        await call
        return
    timer = asyncio.get_running_loop().call_later(max(0.0, left_s), wake, call)
    try:
        await call
    finally:
        timer.cancel()


def wake(call: asyncio.Future[None]) -> None:
    if not call.done():
        call.set_result(None)
