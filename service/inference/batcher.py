"""The batcher: items go in, and each gets a row of the model, on one thread that alone calls the model.

It has no timer. An idle thread immediately starts with whatever waits. While it is busy, more items gather. The batcher
knows lengths, budgets and deadlines. It does not know the meaning of tokens, HTTP or metrics.
`service.inference.batch_policy` chooses which items run together, and `service.inference.queue` holds the waiting ones.
The rest makes sure that every caller ends, with its row or with a Problem. An item is usually a text, but any work
with a length will do.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

import structlog

from service.errors import DeadlineExceeded, InferenceFailed, NotReady, Problem, TextTooLong, describe_fault
from service.fairness.client import CLIENT
from service.inference.admission import ThroughputEstimator
from service.inference.batch_policy import BatchLimits, InferenceResult, Sized
from service.inference.queue import QueuedItem, Request, WorkQueue, complete, count_tokens, wait_until_done
from service.telemetry.batch_report import BatchReport

_log = structlog.get_logger(__name__)

_RESTART_S = 5.0  # about the time that it takes to replace a replica

Work = TypeVar("Work", bound=Sized)
Row = TypeVar("Row")
RowType = TypeVar("RowType", covariant=True)


class Rows(Protocol[RowType]):
    """The rows of a batch, one per item: a list of anything, or an array."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[RowType]: ...


class Batcher(Generic[Work, Row]):
    """A queue and the inference thread that empties it in batches.

    `infer` gets items of similar length and returns one row per item, in order. It may block. After each successful
    call of the model, `report` is called in the event loop. `depth` gets the number of waiting items whenever it
    changes, from either thread, but never from both at the same time. `noun` names an item in messages to callers.
    `clock` must count as the event loop does.
    """

    def __init__(
        self,
        infer: Callable[[Sequence[Work]], Rows[Row]],
        limits: BatchLimits,
        report: Callable[[BatchReport], None],
        depth: Callable[[int], None],
        name: str = "inference",
        noun: str = "text",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._infer = infer
        self._limits = limits
        self._report = report
        self._depth = depth
        self._noun = noun
        self._clock = clock
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._changed = threading.Condition()  # guards the attributes below
        self._throughput = ThroughputEstimator()
        self._queue: WorkQueue[Work, Row] = WorkQueue(limits, self._throughput)
        self._open = False
        self._died = False

    def start(self) -> None:
        """Start the thread; call it in the event loop that will call `run`."""
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._thread.start()

    async def stop(self) -> None:
        """Refuse new items, finish the waiting ones and end the thread."""
        with self._changed:
            self._open = False
            self._changed.notify()
        if self._loop is not None:
            await self._ended.wait()

    @property
    def accepting(self) -> bool:
        """Return whether new items are accepted."""
        return self._open

    @property
    def healthy(self) -> bool:
        """False, permanently, once the inference thread has died."""
        return not self._died

    @property
    def busy(self) -> bool:
        """Return whether any item waits or runs; any thread may read it, and it may be a moment old."""
        return self._throughput.pending > 0

    async def run(self, work: Sequence[Work], deadline_s: float = float("inf")) -> list[InferenceResult[Row] | Problem]:
        """Return one outcome per item, in order, by `deadline_s` on the monotonic clock.

        Cancelling withdraws the items that still wait.

        Raises:
            Overloaded: The queue is full, or at the measured rate the items would finish after the deadline.
            NotReady: The batcher is not running.
        """
        request: Request[Work, Row] = Request(asyncio.get_running_loop().create_future())
        now_s = self._clock()
        items = [QueuedItem(unit, request, deadline_s, now_s) for unit in work]
        longest = max(self._limits.batch_tokens, self._limits.text_tokens)
        for item in items:
            if item.work.length > longest:
                item.outcome = TextTooLong(f"This {self._noun} is longer than the largest batch.", pointer="/text")
        if admitted := [item for item in items if item.outcome is None]:
            request.remaining = len(admitted)
            self._admit(admitted, deadline_s)
            try:
                await wait_until_done(request.done, deadline_s - self._clock())
            finally:
                self._withdraw(admitted)
        return [item.outcome or self._expired() for item in items]

    def run_inline(self, work: Sequence[Work]) -> list[InferenceResult[Row] | Problem]:
        """Return one outcome per item, computed in the event loop.

        This is for items so short that waking a thread would cost about as much. Do not call it while the batcher is
        busy, because only one thread may call the model.

        Raises:
            NotReady: The batcher is not running.
        """
        assert self._loop is not None
        request: Request[Work, Row] = Request(self._loop.create_future(), len(work))
        now_s = self._clock()
        items = [QueuedItem(unit, request, float("inf"), now_s) for unit in work]
        with self._changed:
            if not self._open:
                raise self._not_running()
            self._throughput.enqueued(count_tokens(items), now_s)
        try:
            for item in items:
                self._run([item], _call)
        except BaseException as error:  # it would have ended the thread
            self._die(error)
            with self._changed:
                self._open = False
                self._changed.notify()
            self._fail_remaining(items)
        return [item.outcome or self._expired() for item in items]

    def _not_running(self) -> NotReady:
        return NotReady("The model is not running here.", retry_after_s=_RESTART_S)

    def _expired(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"The {self._noun} was not processed before its deadline.")

    def check(self, deadline_s: float, tokens: int = 0) -> None:
        """Raise Overloaded if a request of at least these tokens would need too long. An idle batcher takes no lock."""
        if self._throughput.pending:
            with self._changed:
                self._queue.check(tokens, deadline_s, self._clock(), CLIENT.get())

    def _admit(self, items: Sequence[QueuedItem[Work, Row]], deadline_s: float) -> None:
        tokens = count_tokens(items)
        with self._changed:
            if not self._open:
                raise self._not_running()
            self._queue.admit(items, tokens, deadline_s, self._clock())
            self._depth(len(self._queue))
            self._changed.notify()

    def _withdraw(self, items: Sequence[QueuedItem[Work, Row]]) -> None:
        """Drop the items without an outcome, because their caller no longer waits."""
        if unfinished := [item for item in items if item.outcome is None]:
            with self._changed:
                for item in unfinished:
                    self._queue.drop(item)
                self._depth(len(self._queue))

    # The following methods run in the inference thread.

    def _work(self) -> None:
        batch: list[QueuedItem[Work, Row]] = []
        try:
            while batch := self._take():
                self._run(batch, self._post)
        except BaseException as error:  # whatever ends this thread must not leave a caller waiting
            self._die(error)
        finally:
            with self._changed:
                self._open = False
                orphans = [*batch, *self._queue.clear()]
            self._post(self._end, orphans)

    def _die(self, error: BaseException) -> None:
        self._died = True
        _log.critical("inference thread died", **describe_fault(error))

    def _take(self) -> list[QueuedItem[Work, Row]]:
        """Wait for the next batch and return it, or an empty list if none will come."""
        with self._changed:
            while self._open or self._queue:
                batch, dropped = self._queue.choose_batch(self._clock())
                if dropped:
                    self._depth(len(self._queue))
                    self._post(self._expire, dropped)
                if batch:
                    self._queue.remove(batch)
                    self._depth(len(self._queue))
                    return batch
                if self._open and not self._queue:
                    self._changed.wait()
            return []

    def _run(self, batch: Sequence[QueuedItem[Work, Row]], post: Callable[..., None]) -> None:
        started_s = self._clock()
        try:
            rows = self._infer([item.work for item in batch])
        except Exception as error:  # an error of the runtime concerns this batch, never the thread
            _log.error("inference failed", texts=len(batch), request_ids=_request_ids(batch), **describe_fault(error))
            self._retry(batch, post)
            return
        infer_s = self._clock() - started_s
        self._finish(batch)
        if len(rows) != len(batch):
            ids = _request_ids(batch)
            _log.error("inference returned the wrong number of rows", texts=len(batch), rows=len(rows), request_ids=ids)
            post(self._fail, batch)
            return
        lengths = [item.work.length for item in batch]
        queued_s = tuple(started_s - item.queued_at_s for item in batch)
        report = BatchReport(queued_s, sum(lengths), max(lengths) * len(batch), infer_s)
        post(self._deliver, batch, rows, report)

    def _retry(self, batch: Sequence[QueuedItem[Work, Row]], post: Callable[..., None]) -> None:
        """Run each item of a failed batch alone, once, so that only the faulty one fails."""
        if len(batch) == 1:
            self._finish(batch)
            post(self._fail, batch)
            return
        for item in batch:
            if item.is_wanted(self._clock()):
                self._run([item], post)
            else:
                self._finish([item])

    def _finish(self, batch: Sequence[QueuedItem[Work, Row]]) -> None:
        """Count the batch as completed, before its callers wake up, so that it does not delay their next requests."""
        with self._changed:
            self._throughput.completed(count_tokens(batch), self._clock())

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    # The following methods run in the event loop again.

    def _deliver(self, batch: Sequence[QueuedItem[Work, Row]], rows: Rows[Row], report: BatchReport) -> None:
        for item, row, queue_s in zip(batch, rows, report.queued_s, strict=True):
            complete(item, InferenceResult(row, queue_s, report.infer_s))
        self._report(report)

    def _fail(self, batch: Sequence[QueuedItem[Work, Row]]) -> None:
        for item in batch:
            complete(item, InferenceFailed(f"The model failed on this {self._noun}."))

    def _expire(self, dropped: Iterable[QueuedItem[Work, Row]]) -> None:
        for item in dropped:
            complete(item, self._expired())

    def _end(self, orphans: Sequence[QueuedItem[Work, Row]]) -> None:
        self._fail_remaining(orphans)
        self._ended.set()

    def _fail_remaining(self, items: Sequence[QueuedItem[Work, Row]]) -> None:
        for item in items:
            complete(item, NotReady("The model stopped.", retry_after_s=_RESTART_S))


def _request_ids(batch: Sequence[QueuedItem[Work, Row]]) -> list[str]:
    return sorted({item.request.request_id for item in batch} - {""})


def _call(callback: Callable[..., None], *args: object) -> None:
    callback(*args)
