"""The batcher: waiting texts in, a row of the model for each out, on one thread that alone touches the model.

Work-conserving, without a timer: an idle thread starts on whatever waits, and while it is busy more gathers. It knows
lengths, budgets and deadlines; it knows nothing of tokens' meaning, of HTTP or of metrics. Which texts go together is
`service.inference.batch_policy`; the rest is bookkeeping that makes every caller end: with its row or with a Problem.
What is said of
texts and tokens goes for all work that has a length.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, Protocol, TypeVar

import structlog

from service.errors import DeadlineExceeded, InferenceFailed, NotReady, Overloaded, Problem, TextTooLong
from service.inference.admission import ThroughputEstimator
from service.inference.batch_policy import BatchLimits, InferenceResult, Sized, next_batch
from service.inference.callers import Caller, QueuedItem, complete, wait_until_done
from service.telemetry.batch_report import BatchReport

_log = structlog.get_logger(__name__)

_WINDOW = 256  # the oldest texts that are looked at for one batch: bounds the search when the queue is long
_RESTART_S = 5.0  # about what a replica needs to be replaced

Work = TypeVar("Work", bound=Sized)
Row = TypeVar("Row")
Given = TypeVar("Given", covariant=True)


class Rows(Protocol[Given]):
    """One for each text: a list of anything, or an array."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Given]: ...


class Batcher(Generic[Work, Row]):
    """`infer` gets texts of near lengths and returns one row for each, in order; it may block.

    `report` is called in the event loop after every call of the model that succeeded. `depth` is called with the number
    of texts that wait whenever it changed, from either thread but never from both at once. `noun` is what callers
    are told a text is.
    """

    def __init__(
        self,
        infer: Callable[[Sequence[Work]], Rows[Row]],
        limits: BatchLimits,
        report: Callable[[BatchReport], None],
        depth: Callable[[int], None],
        name: str = "inference",
        noun: str = "text",
    ) -> None:
        self._infer = infer
        self._limits = limits
        self._report = report
        self._depth = depth
        self._noun = noun
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._changed = threading.Condition()  # guards what follows
        self._queue: OrderedDict[QueuedItem[Work, Row], None] = OrderedDict()
        self._queued_tokens = 0
        self._open = False
        self._died = False
        self._drain = ThroughputEstimator()

    def start(self) -> None:
        """Begin to work; call inside the event loop that will call `run`."""
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._thread.start()

    async def stop(self) -> None:
        """Refuse what is new, finish what waits, end the thread."""
        with self._changed:
            self._open = False
            self._changed.notify()
        if self._loop is not None:
            await self._ended.wait()

    @property
    def accepting(self) -> bool:
        return self._open

    @property
    def healthy(self) -> bool:
        """False, and for good, once the inference thread has died."""
        return not self._died

    @property
    def busy(self) -> bool:
        """Whether any text waits or is being run; asked from any thread, as of a moment ago."""
        return self._drain.pending > 0

    async def run(
        self, texts: Sequence[Work], deadline_s: float = float("inf")
    ) -> list[InferenceResult[Row] | Problem]:
        """One outcome per text, in order, by `deadline_s` on the monotonic clock.

        Raises Overloaded or NotReady for all of them at the door: also when, by the rate at which texts are answered,
        what waits would keep them past the deadline. Cancelling takes what still waits out of the queue.
        """
        call = Caller(asyncio.get_running_loop().create_future())
        now_s = time.monotonic()
        items: list[QueuedItem[Work, Row]] = [QueuedItem(work, call, deadline_s, now_s) for work in texts]
        longest = max(self._limits.batch_tokens, self._limits.text_tokens)
        for item in items:
            if item.work.length > longest:
                item.outcome = TextTooLong(f"This {self._noun} is longer than can be run.", pointer="/text")
        if admitted := [item for item in items if item.outcome is None]:
            call.left = len(admitted)
            self._admit(admitted, deadline_s)
            try:
                await wait_until_done(call.ended, deadline_s - time.monotonic())
            finally:
                self._withdraw(admitted)
        return [item.outcome or self._expired() for item in items]

    def run_inline(self, texts: Sequence[Work]) -> list[InferenceResult[Row] | Problem]:
        """As `run`, here in the event loop: for texts so short that waking a thread costs much beside them.

        Not while the batcher is busy, since nothing else may touch the model meanwhile. Raises NotReady.
        """
        assert self._loop is not None
        call, now_s = Caller(self._loop.create_future(), len(texts)), time.monotonic()
        items: list[QueuedItem[Work, Row]] = [QueuedItem(work, call, float("inf"), now_s) for work in texts]
        with self._changed:
            if not self._open:
                raise self._not_running()
            self._drain.enqueued(_tokens(items), now_s)
        try:
            for item in items:
                self._run([item], _at_once)
        except BaseException as error:  # as where it ends the thread
            self._die(error)
            with self._changed:
                self._open = False
                self._changed.notify()
            self._fail_remaining(items)
        return [item.outcome or self._expired() for item in items]

    def _not_running(self) -> NotReady:
        return NotReady("The model is not running here.", retry_after_s=_RESTART_S)

    def _expired(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"The {self._noun} was not reached in time.")

    def check(self, deadline_s: float) -> None:
        """Raises Overloaded when what waits alone leaves too little time: costs next to nothing, not even a lock."""
        self._drain.admit(0, deadline_s - time.monotonic())

    def _admit(self, items: Sequence[QueuedItem[Work, Row]], deadline_s: float) -> None:
        tokens = _tokens(items)
        with self._changed:
            if not self._open:
                raise self._not_running()
            now_s = time.monotonic()
            self._drain.admit(tokens, deadline_s - now_s)
            # A request larger than the whole queue must be possible at some time: when nothing waits.
            if self._queue and self._queued_tokens + tokens > self._limits.queue_tokens:
                raise Overloaded("The queue is full.", retry_after_s=self._drain.retry_s)
            self._drain.enqueued(tokens, now_s)
            self._queue.update((item, None) for item in items)
            self._queued_tokens += tokens
            self._depth(len(self._queue))
            self._changed.notify()

    def _withdraw(self, items: Sequence[QueuedItem[Work, Row]]) -> None:
        """What has no outcome; its call has ended, so that nobody wants it."""
        if left := [item for item in items if item.outcome is None]:
            with self._changed:
                for item in left:
                    self._drop(item)
                self._depth(len(self._queue))

    def _drop(self, item: QueuedItem[Work, Row]) -> None:
        if item in self._queue:
            self._remove(item)
            self._drain.dropped(item.work.length)

    def _remove(self, item: QueuedItem[Work, Row]) -> None:
        del self._queue[item]
        self._queued_tokens -= item.work.length

    # What follows runs in the inference thread.

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
                orphans = [*batch, *self._queue]
                self._queue.clear()
                self._queued_tokens = 0
            self._post(self._end, orphans)

    def _die(self, error: BaseException) -> None:
        self._died = True
        _log.critical("inference thread died", error=type(error).__name__)

    def _take(self) -> list[QueuedItem[Work, Row]]:
        """The next batch, as soon as there is one; empty when there will be none."""
        with self._changed:
            while self._open or self._queue:
                if batch := self._choose(time.monotonic()):
                    for item in batch:
                        self._remove(item)
                    self._depth(len(self._queue))
                    return batch
                if self._open and not self._queue:
                    self._changed.wait()
            return []

    def _choose(self, now_s: float) -> list[QueuedItem[Work, Row]]:
        """The texts to run next; those that nobody wants any more, or would get too late, are dropped."""
        window = list(islice(self._queue, max(_WINDOW, self._limits.batch_items)))
        wanted = [item for item in window if item.wanted(now_s)]
        dropped = set(window).difference(wanted) if len(wanted) < len(window) else set()
        batch: list[QueuedItem[Work, Row]] = []
        while wanted:
            batch = [wanted[p] for p in next_batch([item.work.length for item in wanted], self._limits)]
            end_s = now_s + self._drain.seconds(_tokens(batch))
            late = {item for item in batch if item.deadline_s < end_s}
            if not late:
                break
            if len(late) == len(wanted):  # nobody is the worse for trying, and only that would show a wrong rate
                batch = wanted[:1]
                break
            dropped |= late
            wanted = [item for item in wanted if item not in late]
        for item in dropped:
            self._drop(item)
        if dropped:
            self._depth(len(self._queue))
            self._post(self._expire, dropped)
        return batch

    def _run(self, batch: Sequence[QueuedItem[Work, Row]], post: Callable[..., None]) -> None:
        started_s = time.monotonic()
        try:
            rows = self._infer([item.work for item in batch])
        except Exception as error:  # anything the runtime throws belongs to this batch, never to the thread
            _log.error("inference failed", error=type(error).__name__, texts=len(batch))
            self._retry(batch, post)
            return
        infer_s = time.monotonic() - started_s
        self._finish(batch)
        if len(rows) != len(batch):
            _log.error("inference returned the wrong number of rows", texts=len(batch), rows=len(rows))
            post(self._fail, batch)
            return
        lengths = [item.work.length for item in batch]
        queued_s = tuple(started_s - item.since_s for item in batch)
        report = BatchReport(queued_s, sum(lengths), max(lengths) * len(batch), infer_s)
        post(self._deliver, batch, rows, report)

    def _retry(self, batch: Sequence[QueuedItem[Work, Row]], post: Callable[..., None]) -> None:
        """Run each text alone, once, so that only the poisoned one fails."""
        if len(batch) == 1:
            self._finish(batch)
            post(self._fail, batch)
            return
        for item in batch:
            if item.wanted(time.monotonic()):
                self._run([item], post)
            else:
                self._finish([item])

    def _finish(self, batch: Sequence[QueuedItem[Work, Row]]) -> None:
        """Counted before the callers hear of it, so that what they send next finds nothing of theirs still ahead."""
        with self._changed:
            self._drain.completed(_tokens(batch), time.monotonic())

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    # What follows runs in the event loop again.

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


def _at_once(callback: Callable[..., None], *args: object) -> None:
    callback(*args)


def _tokens(items: Sequence[QueuedItem[Work, Row]]) -> int:
    return sum(item.work.length for item in items)
