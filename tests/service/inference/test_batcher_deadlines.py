"""Deadlines and cancellation in the batcher: no text runs in vain, and no caller waits longer than it wants to."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.errors import DeadlineExceeded, Overloaded
from tests.support.batching import Clock, number, running, text

pytestmark = pytest.mark.anyio

# Cancellation.


async def test_a_cancelled_text_never_reaches_the_model() -> None:
    async with running() as run:
        holding = await run.hold()
        cancelled, staying = run.begin([text(5, 1)]), run.begin([text(5, 2)])
        await run.until_waiting(2)
        cancelled.cancel()
        await run.until_waiting(1)
        run.model.gate.set()
        await asyncio.gather(holding, staying)
    assert run.model.seen == [0, 2]


async def test_cancelling_a_text_in_the_model_does_not_affect_others() -> None:
    async with running() as run:
        holding = await run.hold()
        holding.cancel()
        waiting = run.begin([text(5, 1)])
        await run.until_waiting(1)
        run.model.gate.set()
        assert number((await waiting)[0]) == 1


async def test_the_waiting_texts_of_a_cancelled_caller_do_not_run() -> None:
    async with running() as run:
        holding = await run.hold()
        cancelled, staying = run.begin([text(5, 1), text(5, 2)]), run.begin([text(5, 3)])
        await run.until_waiting(3)
        cancelled.cancel()
        run.model.gate.set()
        assert [number((await request)[0]) for request in (holding, staying)] == [0, 3]
    assert run.model.seen == [0, 3]


# Deadlines.


async def test_an_expired_text_ends_while_the_model_is_busy_and_never_reaches_it() -> None:
    async with running() as run:
        holding = await run.hold()
        (expired,) = await run.batcher.run([text(5, 1)], time.monotonic() + 0.02)
        assert isinstance(expired, DeadlineExceeded)
        assert run.depths[-1] == 0
        run.model.gate.set()
        await holding
    assert run.model.seen == [0]


async def test_the_inference_thread_drops_an_expired_text_while_the_event_loop_is_blocked() -> None:
    async with running() as run:
        holding = await run.hold()
        late = run.begin([text(5, 1)], time.monotonic() + 0.02)
        await run.until_waiting(1)
        time.sleep(0.03)  # blocks the event loop, so that only the inference thread can notice
        run.model.gate.set()
        run.model.entered.clear()
        assert not run.model.entered.wait(0.05)
        await asyncio.gather(holding, late)
    assert run.model.seen == [0]


async def test_a_text_in_the_model_ends_at_its_deadline_too() -> None:
    async with running() as run:
        run.model.gate.clear()
        (expired,) = await run.batcher.run([text(5, 1)], time.monotonic() + 0.02)
    assert isinstance(expired, DeadlineExceeded)


async def test_a_text_that_would_end_too_late_is_dropped_before_it_reaches_the_model() -> None:
    clock = Clock()
    async with running(clock=clock) as run:
        holding = await run.hold()
        hopeless, patient = run.begin([text(30, 1)], deadline_s=100.0), run.begin([text(5, 2)])
        await run.until_waiting(2)
        clock.now_s = 98.0  # so 30 tokens would take 980 s
        run.model.gate.set()
        assert isinstance((await hopeless)[0], DeadlineExceeded)
        assert number((await patient)[0]) == 2
        await holding
    assert run.model.seen == [0, 2]


async def test_the_oldest_text_is_tried_if_all_would_end_too_late() -> None:
    """Otherwise a rate from a bad moment would never be measured again."""
    clock = Clock()
    async with running(clock=clock) as run:
        holding = await run.hold()
        waiting = [run.begin([text(5, number)], deadline_s=100.0) for number in (1, 2)]
        await run.until_waiting(2)
        clock.now_s = 99.0
        run.model.gate.set()
        assert [number((await request)[0]) for request in (holding, *waiting)] == [0, 1, 2]
    assert run.model.batches == [[0], [1], [2]]


async def test_stopping_ends_if_all_waiting_texts_have_expired() -> None:
    clock = Clock()
    async with running(clock=clock) as run:
        holding = await run.hold()
        waiting = run.begin([text(5, 1)], deadline_s=100.0)
        await run.until_waiting(1)
        stopping = asyncio.ensure_future(run.batcher.stop())
        await asyncio.sleep(0)
        clock.now_s = 101.0
        run.model.gate.set()
        await asyncio.wait_for(stopping, 60)
        assert isinstance((await waiting)[0], DeadlineExceeded)
        await holding
        assert run.depths[-1] == 0


# Admission in time.


async def test_a_request_that_would_wait_past_its_deadline_is_refused() -> None:
    clock = Clock()
    async with running(clock=clock) as run:
        await run.measure_slowness(clock)
        holding = await run.hold()
        waiting = run.begin([text(33, 1)])
        await run.until_waiting(1)
        with pytest.raises(Overloaded) as refused:
            await run.batcher.run([text(6, 2)], deadline_s=8.0)  # 3 + 33 + 6 tokens take 7 s of the remaining 7.5
        assert refused.value.headers == {"Retry-After": "6"}
        with pytest.raises(Overloaded):
            run.batcher.check(deadline_s=6.0)
        patient = run.begin([text(6, 3)], deadline_s=11.0)
        await run.until_waiting(2)
        run.model.gate.set()
        await asyncio.gather(holding, waiting)
        assert number((await patient)[0]) == 3


async def test_a_cancelled_request_no_longer_counts_for_admission() -> None:
    clock = Clock()
    async with running(clock=clock) as run:
        await run.measure_slowness(clock)
        holding = await run.hold()
        cancelled = run.begin([text(60, 1)])
        await run.until_waiting(1)
        with pytest.raises(Overloaded):
            run.batcher.check(deadline_s=2.5)
        cancelled.cancel()
        await run.until_waiting(0)
        run.batcher.check(deadline_s=2.5)
        run.model.gate.set()
        await holding


async def test_an_idle_batcher_refuses_no_request_whatever_its_rate() -> None:
    clock = Clock()
    async with running(clock=clock) as run:
        holding = await run.hold()
        clock.now_s = 3600.0  # a stall
        run.model.gate.set()
        await holding
        assert number((await run.batcher.run([text(8, 2)], deadline_s=3601.0))[0]) == 2


async def test_idle_time_does_not_lower_the_rate() -> None:
    clock = Clock()
    async with running(clock=clock) as run:
        for start_s in (1.0, 3600.0):
            clock.now_s = start_s
            holding = await run.hold()
            clock.now_s += 0.5
            run.model.gate.set()
            await holding
        holding = await run.hold()
        run.batcher.check(deadline_s=clock.now_s + 1.0)  # 3 tokens take half a second
        run.model.gate.set()
        await holding
