"""Each line of the batcher's contract: every caller ends, nothing is run in vain, nothing waits without need."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.text.encoding import Encoding
from service.errors import DeadlineExceeded, InferenceFailed, NotReady, Overloaded, Problem, TextTooLong
from service.inference import batcher as batching
from service.inference.batch_policy import BatchLimits, InferenceResult
from service.inference.batcher import Batcher
from service.telemetry.batch_report import BatchReport

pytestmark = pytest.mark.anyio

LIMITS = BatchLimits(batch_tokens=64, batch_items=4, queue_tokens=1000)
POISON = 666


def text(length: int, number: int = 0) -> Encoding:
    ids = np.zeros(length, np.int64)
    ids[0] = number
    return Encoding(ids, np.zeros(length, np.int64), truncated=False, language="en")


class Model:
    """Answers each text with its own number and length; holds while `gate` is shut, and tells when it was entered."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []  # numbers of the texts
        self.failure: BaseException | None = None
        self.rows_lost = 0

    def infer(self, texts: Sequence[Encoding]) -> NDArray[np.float64]:
        numbers = [int(one.ids[0]) for one in texts]
        self.batches.append(numbers)
        self.entered.set()
        assert self.gate.wait(60)
        if self.failure:
            raise self.failure
        if POISON in numbers:
            raise ValueError("poison")
        return np.array([[number, one.length] for number, one in zip(numbers, texts, strict=True)], np.float64)[
            self.rows_lost :
        ]

    @property
    def seen(self) -> list[int]:
        return [number for batch in self.batches for number in batch]


class Running:
    def __init__(self, limits: BatchLimits) -> None:
        self.model = Model()
        self.reports: list[BatchReport] = []
        self.depths = [0]
        self.batcher = Batcher(self.model.infer, limits, self.reports.append, self.depths.append)

    def begin(self, texts: Sequence[Encoding], deadline_s: float = float("inf")) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self.batcher.run(texts, deadline_s))

    async def busy(self) -> asyncio.Task[Any]:
        """Shut the gate and let one text, number 0, hold the model."""
        self.model.gate.clear()
        self.model.entered.clear()
        first = self.begin([text(3)])
        assert await asyncio.to_thread(self.model.entered.wait, 60)
        return first

    async def waiting(self, count: int) -> None:
        while self.depths[-1] != count:
            await asyncio.sleep(0)


@asynccontextmanager
async def running(limits: BatchLimits = LIMITS) -> AsyncIterator[Running]:
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    run = Running(limits)
    run.batcher.start()
    try:
        yield run
    finally:
        run.model.gate.set()
        await asyncio.wait_for(run.batcher.stop(), 60)
    assert not faults


async def slowly(run: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes is measured, by a clock that stands still afterwards: 3 tokens in half a second."""
    now_s = 0.0
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now_s))
    first = await run.busy()
    now_s = 0.5
    run.model.gate.set()
    await first


def number(outcome: InferenceResult[NDArray[np.float64]] | Problem) -> int:
    assert isinstance(outcome, InferenceResult)
    return int(outcome.row[0])


# What becomes of a caller.


async def test_each_text_gets_its_own_scores_in_order() -> None:
    texts = [text(1 + (number * 37) % 50, number) for number in range(200)]
    async with running(BatchLimits(64, 4, 100_000)) as run:
        outcomes = await run.batcher.run(texts)
    assert [outcome.row.tolist() for outcome in outcomes if isinstance(outcome, InferenceResult)] == [
        [number, one.length] for number, one in enumerate(texts)
    ]


async def test_an_idle_batcher_sets_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[object] = []
    wait = threading.Condition.wait

    def watched(self: threading.Condition, timeout: float | None = None) -> bool:
        timeouts.append(timeout)
        return wait(self, timeout)

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("a timer was set")

    async with running() as run:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Condition, "wait", watched)
            patch.setattr(asyncio.get_running_loop(), "call_at", refuse)
            assert number((await run.batcher.run([text(3, 7)]))[0]) == 7
            assert number((await run.batcher.run([text(3, 8)]))[0]) == 8
    assert set(timeouts) <= {None}


async def test_a_busy_batcher_gathers() -> None:
    async with running() as run:
        first = await run.busy()
        others = [run.begin([text(5, number)]) for number in (1, 2, 3)]
        await run.waiting(3)
        run.model.gate.set()
        await asyncio.gather(first, *others)
    assert run.model.batches == [[0], [1, 2, 3]]


async def test_the_oldest_is_run_first_whatever_its_length() -> None:
    async with running() as run:
        first = await run.busy()
        others = [run.begin([text(length, length)]) for length in (50, 5, 5, 5, 20)]
        await run.waiting(5)
        run.model.gate.set()
        await asyncio.gather(first, *others)
    assert run.model.batches == [[0], [50], [5, 5, 5], [20]]


async def test_a_text_over_the_budget_is_refused_at_the_door_and_its_neighbours_are_not() -> None:
    async with running() as run:
        too_long, fine = await run.batcher.run([text(65, 1), text(64, 2)])
    assert isinstance(too_long, TextTooLong)
    assert number(fine) == 2
    assert run.model.seen == [2]


async def test_a_text_over_the_budget_runs_alone_where_such_texts_are_taken() -> None:
    async with running(BatchLimits(64, 4, 1000, text_tokens=100)) as run:
        first = await run.busy()
        waiting = run.begin([text(100, 1), text(101, 2), text(100, 3)])
        await run.waiting(2)
        run.model.gate.set()
        await first
        one, too_long, three = await waiting
    assert (number(one), number(three)) == (1, 3)
    assert isinstance(too_long, TextTooLong)
    assert [len(batch) for batch in run.model.batches[1:]] == [1, 1]


async def test_a_poisoned_text_fails_alone_after_one_retry() -> None:
    async with running() as run:
        first = await run.busy()
        other = run.begin([text(5, 1), text(5, POISON), text(5, 2)])
        await run.waiting(3)
        run.model.gate.set()
        await first
        one, poisoned, two = await other
        assert [number(one), number(two)] == [1, 2]
        assert isinstance(poisoned, InferenceFailed)
        assert run.model.batches == [[0], [1, POISON, 2], [1], [POISON], [2]]
        assert number((await run.batcher.run([text(3, 4)]))[0]) == 4
    assert run.batcher.healthy


async def test_a_lost_row_fails_the_whole_batch() -> None:
    async with running() as run:
        first = await run.busy()
        other = run.begin([text(5, 1), text(5, 2)])
        await run.waiting(2)
        run.model.rows_lost = 1
        run.model.gate.set()
        assert [type(outcome) for outcome in [*await first, *await other]] == [InferenceFailed] * 3


async def test_a_cancelled_text_never_reaches_the_model() -> None:
    async with running() as run:
        first = await run.busy()
        cancelled, kept = run.begin([text(5, 1)]), run.begin([text(5, 2)])
        await run.waiting(2)
        cancelled.cancel()
        await run.waiting(1)
        run.model.gate.set()
        await asyncio.gather(first, kept)
    assert run.model.seen == [0, 2]


async def test_cancelling_what_the_model_is_at_harms_nobody() -> None:
    async with running() as run:
        first = await run.busy()
        first.cancel()
        other = run.begin([text(5, 1)])
        await run.waiting(1)
        run.model.gate.set()
        assert number((await other)[0]) == 1


async def test_an_expired_text_ends_while_the_model_is_busy_and_never_reaches_it() -> None:
    async with running() as run:
        first = await run.busy()
        (expired,) = await run.batcher.run([text(5, 1)], time.monotonic() + 0.02)
        assert isinstance(expired, DeadlineExceeded)
        assert run.depths[-1] == 0
        run.model.gate.set()
        await first
    assert run.model.seen == [0]


async def test_a_text_that_expires_where_it_waits_is_not_run_even_if_nobody_took_it_out() -> None:
    async with running() as run:
        first = await run.busy()
        late = run.begin([text(5, 1)], time.monotonic() + 0.02)
        await run.waiting(1)
        time.sleep(0.03)  # the loop is held: only the inference thread can notice
        run.model.gate.set()
        run.model.entered.clear()
        assert not run.model.entered.wait(0.05)
        await asyncio.gather(first, late)
    assert run.model.seen == [0]


async def test_what_the_model_is_at_ends_at_its_deadline_too() -> None:
    async with running() as run:
        run.model.gate.clear()
        (expired,) = await run.batcher.run([text(5, 1)], time.monotonic() + 0.02)
    assert isinstance(expired, DeadlineExceeded)


# The door.


async def test_a_full_queue_refuses_all_of_a_request_and_keeps_nothing_of_it() -> None:
    async with running(BatchLimits(64, 4, queue_tokens=20)) as run:
        first = await run.busy()
        waiting = run.begin([text(15, 1)])
        await run.waiting(1)
        with pytest.raises(Overloaded):
            await run.batcher.run([text(3, 2), text(3, 3)])
        assert run.depths[-1] == 1
        fits = run.begin([text(5, 4)])
        await run.waiting(2)
        run.model.gate.set()
        await asyncio.gather(first, waiting, fits)
    assert sorted(run.model.seen) == [0, 1, 4]


async def test_what_was_taken_out_makes_room() -> None:
    async with running(BatchLimits(64, 4, queue_tokens=20)) as run:
        first = await run.busy()
        gone, stays = run.begin([text(10, 1)]), run.begin([text(10, 2)])
        await run.waiting(2)
        gone.cancel()
        await run.waiting(1)
        comes = run.begin([text(10, 3)])
        await run.waiting(2)
        run.model.gate.set()
        await asyncio.gather(first, stays, comes)
    assert sorted(run.model.seen) == [0, 2, 3]


async def test_a_request_larger_than_the_queue_is_taken_when_nothing_waits() -> None:
    async with running(BatchLimits(64, 4, queue_tokens=20)) as run:
        outcomes = await run.batcher.run([text(10, number) for number in range(9)])
    assert [number(outcome) for outcome in outcomes] == list(range(9))


async def test_retry_after_is_what_waits_over_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(BatchLimits(64, 4, queue_tokens=40)) as run:
        await slowly(run, monkeypatch)
        second = await run.busy()
        waiting = run.begin([text(33, 1)])
        await run.waiting(1)
        with pytest.raises(Overloaded) as refused:
            await run.batcher.run([text(8, 2)])
        assert refused.value.headers == {"Retry-After": "6"}  # 33 tokens at 6 a second
        run.model.gate.set()
        await asyncio.gather(second, waiting)


# Who is refused because time would run out.


async def test_what_waits_longer_than_a_caller_can_is_refused_at_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as run:
        await slowly(run, monkeypatch)
        second = await run.busy()
        waiting = run.begin([text(33, 1)])
        await run.waiting(1)
        with pytest.raises(Overloaded) as refused:
            await run.batcher.run([text(6, 2)], deadline_s=8.0)  # 3 + 33 + 6 tokens take 7 s of the 7.5 there are
        assert refused.value.headers == {"Retry-After": "6"}
        with pytest.raises(Overloaded):
            run.batcher.check(deadline_s=6.0)
        patient = run.begin([text(6, 3)], deadline_s=11.0)
        await run.waiting(2)
        run.model.gate.set()
        await asyncio.gather(second, waiting)
        assert number((await patient)[0]) == 3


async def test_who_went_away_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as run:
        await slowly(run, monkeypatch)
        second = await run.busy()
        gone = run.begin([text(60, 1)])
        await run.waiting(1)
        with pytest.raises(Overloaded):
            run.batcher.check(deadline_s=2.5)
        gone.cancel()
        await run.waiting(0)
        run.batcher.check(deadline_s=2.5)
        run.model.gate.set()
        await second


async def test_an_idle_thread_refuses_nobody_whatever_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now_s))
    async with running() as run:
        first = await run.busy()
        now_s = 3600.0  # a stall
        run.model.gate.set()
        await first
        assert number((await run.batcher.run([text(8, 2)], deadline_s=3601.0))[0]) == 2


async def test_time_without_work_does_not_count_as_slowness(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now_s))
    async with running() as run:
        for later_s in (1.0, 3600.0):
            now_s = later_s
            busy = await run.busy()
            now_s += 0.5
            run.model.gate.set()
            await busy
        third = await run.busy()
        run.batcher.check(deadline_s=now_s + 1.0)  # 3 tokens take half a second
        run.model.gate.set()
        await third


async def test_a_text_that_would_end_too_late_is_dropped_before_the_model_and_its_caller_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now_s))
    async with running() as run:
        first = await run.busy()
        hopeless, patient = run.begin([text(30, 1)], deadline_s=100.0), run.begin([text(5, 2)])
        await run.waiting(2)
        now_s = 98.0  # so 30 tokens would take 980 s
        run.model.gate.set()
        assert isinstance((await hopeless)[0], DeadlineExceeded)
        assert number((await patient)[0]) == 2
        await first
    assert run.model.seen == [0, 2]


async def test_the_oldest_is_tried_when_all_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a rate measured at a bad time would never be measured again."""
    now_s = 0.0
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now_s))
    async with running() as run:
        first = await run.busy()
        others = [run.begin([text(5, number)], deadline_s=100.0) for number in (1, 2)]
        await run.waiting(2)
        now_s = 99.0
        run.model.gate.set()
        assert [number((await one)[0]) for one in (first, *others)] == [0, 1, 2]
    assert run.model.batches == [[0], [1], [2]]


# The thread's end.


async def test_a_dead_thread_fails_its_callers_and_makes_the_batcher_unhealthy() -> None:
    async with running() as run:
        running_one = await run.busy()
        waiting = run.begin([text(5, 1), text(50, 2)])
        await run.waiting(2)
        run.model.failure = SystemExit()
        run.model.gate.set()
        outcomes = [*await running_one, *await waiting]
        assert [type(outcome) for outcome in outcomes] == [NotReady] * 3
        assert not run.batcher.healthy
        with pytest.raises(NotReady):
            await run.batcher.run([text(3)])


async def test_stopping_ends_when_nobody_wants_what_waits_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 0.0
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now_s))
    async with running() as run:
        first = await run.busy()
        waiting = run.begin([text(5, 1)], deadline_s=100.0)
        await run.waiting(1)
        stopping = asyncio.ensure_future(run.batcher.stop())
        await asyncio.sleep(0)
        now_s = 101.0
        run.model.gate.set()
        await asyncio.wait_for(stopping, 60)
        assert isinstance((await waiting)[0], DeadlineExceeded)
        await first
        assert run.depths[-1] == 0


async def test_what_a_cancelled_caller_had_waiting_is_not_run() -> None:
    async with running() as run:
        first = await run.busy()
        given_up, kept = run.begin([text(5, 1), text(5, 2)]), run.begin([text(5, 3)])
        await run.waiting(3)
        given_up.cancel()
        run.model.gate.set()
        assert [number((await one)[0]) for one in (first, kept)] == [0, 3]
    assert run.model.seen == [0, 3]


async def test_stopping_finishes_what_waits_and_refuses_what_is_new() -> None:
    async with running() as run:
        first = await run.busy()
        waiting = run.begin([text(5, 1), text(50, 2)])
        await run.waiting(2)
        stopping = asyncio.ensure_future(run.batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(NotReady):
            await run.batcher.run([text(5, 3)])
        assert not stopping.done()
        run.model.gate.set()
        await stopping
        assert [number(outcome) for outcome in [*await first, *await waiting]] == [0, 1, 2]
        await run.batcher.stop()
    assert run.batcher.healthy
    assert not run.batcher.accepting


async def test_what_waits_can_be_any_work_that_has_a_length_and_a_row_anything() -> None:
    @dataclass(frozen=True)
    class Sum:
        numbers: tuple[int, ...]

        @property
        def length(self) -> int:
            return len(self.numbers)

    def infer(works: Sequence[Sum]) -> list[str]:
        return [str(sum(work.numbers)) for work in works]

    batcher: Batcher[Sum, str] = Batcher(infer, LIMITS, lambda _: None, lambda _: None, noun="sum")
    batcher.start()
    outcomes = await batcher.run([Sum((1, 2)), Sum((3,) * 65), Sum((4, 5, 6))])
    await batcher.stop()
    assert [one.row for one in outcomes if isinstance(one, InferenceResult)] == ["3", "15"]
    assert isinstance(outcomes[1], TextTooLong)
    assert outcomes[1].detail == "This sum is longer than can be run."


async def test_before_start_it_refuses_and_stopping_it_is_harmless() -> None:
    batcher = Batcher(Model().infer, LIMITS, lambda _: None, lambda _: None)
    with pytest.raises(NotReady):
        await batcher.run([text(3)])
    await batcher.stop()


async def test_a_report_tells_what_the_model_was_given() -> None:
    async with running() as run:
        first = await run.busy()
        other = run.begin([text(10, 1), text(11, 2)])
        await run.waiting(2)
        run.model.gate.set()
        await asyncio.gather(first, other)
    _, report = run.reports
    assert (len(report.queued_s), report.tokens, report.padded_tokens) == (2, 21, 22)
    assert all(queued_s >= 0 for queued_s in report.queued_s)


async def test_the_depth_is_told_while_the_model_is_busy() -> None:
    async with running() as run:
        first = await run.busy()
        stays, goes = run.begin([text(10, 1)]), run.begin([text(11, 2), text(11, 3)])
        await run.waiting(3)
        goes.cancel()
        await run.waiting(1)
        assert run.depths == [0, 1, 0, 1, 3, 1]
        run.model.gate.set()
        await asyncio.gather(first, stays)
    assert run.depths[-1] == 0


# In the event loop.


async def test_texts_run_here_are_answered_and_reported_like_others(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as run:
        threads, infer = [], run.model.infer

        def traced(texts: Sequence[Encoding]) -> NDArray[np.float64]:
            threads.append(threading.get_ident())
            return infer(texts)

        monkeypatch.setattr(run.batcher, "_infer", traced)
        busy: list[bool] = []
        monkeypatch.setattr(run.batcher, "_report", lambda report: busy.append(run.batcher.busy))
        found = run.batcher.run_inline([text(3, 1), text(3, POISON), text(9, 2)])
        assert threads == [threading.get_ident()] * 3
        first, failed, last = found
        assert isinstance(first, InferenceResult)
        assert isinstance(last, InferenceResult)
        assert (first.row.tolist(), last.row.tolist()) == ([1, 3], [2, 9])
        assert isinstance(failed, InferenceFailed)
        assert len(busy) == 2
        assert busy[0], "the others are still ahead"
        assert not run.batcher.busy
        monkeypatch.undo()
        (other,) = await run.batcher.run([text(4, 7)])
        assert isinstance(other, InferenceResult)
        assert run.reports[-1].tokens == 4


async def test_nothing_runs_here_that_would_not_run_at_all() -> None:
    async with running() as run:
        await run.batcher.stop()
        with pytest.raises(NotReady):
            run.batcher.run_inline([text(3)])
        assert not run.model.seen


async def test_what_ends_the_thread_ends_the_batcher_here_too() -> None:
    async with running() as run:
        run.model.failure = SystemExit()
        found = run.batcher.run_inline([text(3, 1), text(3, 2)])
        assert [type(one) for one in found] == [NotReady, NotReady]
        assert run.model.seen == [1]
        assert not run.batcher.healthy
        with pytest.raises(NotReady):
            await run.batcher.run([text(3)])
