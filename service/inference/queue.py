"""The bounded queue of a batcher, and the callers that wait for its items."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from service.errors import Overloaded, Problem
from service.inference.admission import ThroughputEstimator
from service.inference.batch_policy import BatchLimits, InferenceResult, Sized, next_batch
from service.telemetry.logs import REQUEST_ID

_WINDOW = 256  # the oldest items that a batch is chosen from, which bounds the search when the queue is long

Work = TypeVar("Work", bound=Sized)
Row = TypeVar("Row")


@dataclass(slots=True, eq=False)
class Caller:
    """A caller with several items, woken once, by the last of them."""

    done: asyncio.Future[None]
    remaining: int = 0
    request_id: str = field(default_factory=REQUEST_ID.get)


@dataclass(slots=True, eq=False)
class QueuedItem(Generic[Work, Row]):
    """A piece of work with its caller, its deadline and, at the end, its outcome."""

    work: Work
    caller: Caller
    deadline_s: float
    queued_at_s: float
    outcome: InferenceResult[Row] | Problem | None = None  # set in the event loop

    def is_wanted(self, now_s: float) -> bool:
        """Return whether the item has no outcome yet, is before its deadline and has a caller that still waits."""
        return self.outcome is None and now_s < self.deadline_s and not self.caller.done.done()


def complete(item: QueuedItem[Work, Row], outcome: InferenceResult[Row] | Problem) -> None:
    """Set the outcome of an item that has none, and wake its caller if it was the last."""
    if item.outcome is None and not item.caller.done.done():
        item.outcome = outcome
        item.caller.remaining -= 1
        if not item.caller.remaining:
            item.caller.done.set_result(None)


async def wait_until_done(done: asyncio.Future[None], remaining_s: float) -> None:
    """Wait until the future is done, for at most `remaining_s` seconds."""
    if remaining_s == math.inf:
        await done
        return
    timer = asyncio.get_running_loop().call_later(max(0.0, remaining_s), _wake, done)
    try:
        await done
    finally:
        timer.cancel()


def _wake(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


class WorkQueue(Generic[Work, Row]):
    """Items that wait, oldest first, bounded in tokens and in time.

    It has no lock: the batcher calls it under its own. `throughput` counts the tokens that enter or leave undone.
    """

    def __init__(self, limits: BatchLimits, throughput: ThroughputEstimator) -> None:
        self._limits = limits
        self._throughput = throughput
        self._items: OrderedDict[QueuedItem[Work, Row], None] = OrderedDict()
        self._tokens = 0

    def __len__(self) -> int:
        return len(self._items)

    def admit(self, items: Sequence[QueuedItem[Work, Row]], tokens: int, deadline_s: float, now_s: float) -> None:
        """Append the items of a request, which have `tokens` together.

        Raises:
            Overloaded: The queue is full, or the items would probably finish after the deadline.
        """
        self._throughput.admit(tokens, deadline_s - now_s)
        # A request larger than the whole queue must be possible at some time: when nothing waits.
        if self._items and self._tokens + tokens > self._limits.queue_tokens:
            raise Overloaded("The queue is full.", retry_after_s=self._throughput.retry_s)
        self._throughput.enqueued(tokens, now_s)
        self._items.update((item, None) for item in items)
        self._tokens += tokens

    def choose_batch(self, now_s: float) -> tuple[list[QueuedItem[Work, Row]], set[QueuedItem[Work, Row]]]:
        """Return the items to run next, and the items dropped because no caller wants them or they would be late.

        The dropped items have left the queue. The batch stays in it until `remove` is called.
        """
        window = list(islice(self._items, max(_WINDOW, self._limits.batch_items)))
        wanted = [item for item in window if item.is_wanted(now_s)]
        dropped = set(window).difference(wanted) if len(wanted) < len(window) else set()
        batch: list[QueuedItem[Work, Row]] = []
        while wanted:
            batch = [wanted[index] for index in next_batch([item.work.length for item in wanted], self._limits)]
            end_s = now_s + self._throughput.seconds(count_tokens(batch))
            late = {item for item in batch if item.deadline_s < end_s}
            if not late:
                break
            if len(late) == len(wanted):  # trying harms no caller, and nothing else would correct a wrong rate
                batch = wanted[:1]
                break
            dropped |= late
            wanted = [item for item in wanted if item not in late]
        for item in dropped:
            self.drop(item)
        return batch, dropped

    def remove(self, batch: Sequence[QueuedItem[Work, Row]]) -> None:
        """Take the items of a batch out of the queue; their tokens stay pending until they are finished."""
        for item in batch:
            self._remove(item)

    def drop(self, item: QueuedItem[Work, Row]) -> None:
        """Take an item out of the queue undone, unless it has left already."""
        if item in self._items:
            self._remove(item)
            self._throughput.dropped(item.work.length)

    def clear(self) -> list[QueuedItem[Work, Row]]:
        """Empty the queue and return what was in it."""
        items = list(self._items)
        self._items.clear()
        self._tokens = 0
        return items

    def _remove(self, item: QueuedItem[Work, Row]) -> None:
        del self._items[item]
        self._tokens -= item.work.length


def count_tokens(items: Sequence[QueuedItem[Work, Row]]) -> int:
    """Return the tokens of all items, without padding."""
    return sum(item.work.length for item in items)
