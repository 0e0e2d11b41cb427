"""The contract of the batcher: order, batches, the bounds of the queue, reports, and running in the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from service.errors import InferenceFailed, NotReady, Overloaded, TextTooLong
from service.fairness.client import CLIENT
from service.inference.batch_policy import BatchLimits, InferenceResult
from service.inference.batcher import Batcher
from tests.support.batching import LIMITS, POISON, Clock, HeldModel, number, running, text

pytestmark = pytest.mark.anyio

# Batches.


async def test_each_text_gets_its_own_scores_in_order() -> None:
    texts = [text(1 + (number * 37) % 50, number) for number in range(200)]
    async with running(BatchLimits(64, 4, 100_000)) as run:
        outcomes = await run.batcher.run(texts)
    assert [outcome.row.tolist() for outcome in outcomes if isinstance(outcome, InferenceResult)] == [
        [number, text.length] for number, text in enumerate(texts)
    ]


async def test_an_idle_batcher_sets_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[object] = []
    wait = threading.Condition.wait

    def recorded_wait(self: threading.Condition, timeout: float | None = None) -> bool:
        timeouts.append(timeout)
        return wait(self, timeout)

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("a timer was set")

    async with running() as run:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Condition, "wait", recorded_wait)
            patch.setattr(asyncio.get_running_loop(), "call_at", refuse)
            assert number((await run.batcher.run([text(3, 7)]))[0]) == 7
            assert number((await run.batcher.run([text(3, 8)]))[0]) == 8
    assert set(timeouts) <= {None}


async def test_texts_gather_while_the_model_is_busy() -> None:
    async with running() as run:
        holding = await run.hold()
        waiting = [run.begin([text(5, number)]) for number in (1, 2, 3)]
        await run.until_waiting(3)
        run.model.gate.set()
        await asyncio.gather(holding, *waiting)
    assert run.model.batches == [[0], [1, 2, 3]]


async def test_the_oldest_text_runs_first_whatever_its_length() -> None:
    async with running() as run:
        holding = await run.hold()
        waiting = [run.begin([text(length, length)]) for length in (50, 5, 5, 5, 20)]
        await run.until_waiting(5)
        run.model.gate.set()
        await asyncio.gather(holding, *waiting)
    assert run.model.batches == [[0], [50], [5, 5, 5], [20]]


async def test_a_text_over_the_budget_is_refused_and_its_neighbours_are_answered() -> None:
    async with running() as run:
        too_long, fine = await run.batcher.run([text(65, 1), text(64, 2)])
    assert isinstance(too_long, TextTooLong)
    assert number(fine) == 2
    assert run.model.seen == [2]


async def test_a_text_over_the_budget_runs_alone_if_the_limits_allow_it() -> None:
    async with running(BatchLimits(64, 4, 1000, text_tokens=100)) as run:
        holding = await run.hold()
        waiting = run.begin([text(100, 1), text(101, 2), text(100, 3)])
        await run.until_waiting(2)
        run.model.gate.set()
        await holding
        first, too_long, third = await waiting
    assert (number(first), number(third)) == (1, 3)
    assert isinstance(too_long, TextTooLong)
    assert [len(batch) for batch in run.model.batches[1:]] == [1, 1]


async def test_any_work_with_a_length_can_have_rows_of_any_type() -> None:
    @dataclass(frozen=True)
    class Sum:
        numbers: tuple[int, ...]

        @property
        def length(self) -> int:
            return len(self.numbers)

    def infer(sums: Sequence[Sum]) -> list[str]:
        return [str(sum(work.numbers)) for work in sums]

    batcher: Batcher[Sum, str] = Batcher(infer, LIMITS, lambda _: None, lambda _: None, noun="sum")
    batcher.start()
    outcomes = await batcher.run([Sum((1, 2)), Sum((3,) * 65), Sum((4, 5, 6))])
    await batcher.stop()
    assert [outcome.row for outcome in outcomes if isinstance(outcome, InferenceResult)] == ["3", "15"]
    assert isinstance(outcomes[1], TextTooLong)
    assert outcomes[1].detail == "This sum is longer than the largest batch."


# The bounds of the queue.


async def test_a_full_queue_refuses_a_whole_request() -> None:
    async with running(BatchLimits(64, 4, queue_tokens=20)) as run:
        holding = await run.hold()
        waiting = run.begin([text(15, 1)])
        await run.until_waiting(1)
        with pytest.raises(Overloaded):
            await run.batcher.run([text(6, 2), text(6, 3)])
        assert run.depths[-1] == 1
        fits = run.begin([text(5, 4)])
        await run.until_waiting(2)
        run.model.gate.set()
        await asyncio.gather(holding, waiting, fits)
    assert sorted(run.model.seen) == [0, 1, 4]


async def test_a_request_holds_only_a_part_of_the_queue() -> None:
    async with running(BatchLimits(64, 4, queue_tokens=80)) as run:
        holding = await run.hold()
        large = run.begin([text(10, number) for number in range(1, 31)])
        await run.until_waiting(30)
        others = [run.begin([text(10, number)]) for number in range(31, 38)]
        await run.until_waiting(37)
        with pytest.raises(Overloaded):
            await run.batcher.run([text(10, 99)])
        run.model.gate.set()
        outcomes = await large
        await asyncio.gather(holding, *others)
    assert [number(outcome) for outcome in outcomes] == list(range(1, 31))


async def test_clients_take_turns_in_the_model() -> None:
    async with running(BatchLimits(64, 2, 1000)) as run:
        holding = await run.hold()
        tasks = []
        for client, numbers in (("a", range(1, 7)), ("b", range(11, 15))):
            token = CLIENT.set(client)
            tasks.append(run.begin([text(10, number) for number in numbers]))
            CLIENT.reset(token)
        await run.until_waiting(10)
        run.model.gate.set()
        await asyncio.gather(holding, *tasks)
    assert run.model.batches[1:] == [[1, 2], [11, 12], [3, 4], [13, 14], [5, 6]]


async def test_a_withdrawn_text_makes_room_in_the_queue() -> None:
    async with running(BatchLimits(64, 4, queue_tokens=20)) as run:
        holding = await run.hold()
        withdrawn, staying = run.begin([text(10, 1)]), run.begin([text(10, 2)])
        await run.until_waiting(2)
        withdrawn.cancel()
        await run.until_waiting(1)
        coming = run.begin([text(10, 3)])
        await run.until_waiting(2)
        run.model.gate.set()
        await asyncio.gather(holding, staying, coming)
    assert sorted(run.model.seen) == [0, 2, 3]


async def test_a_request_larger_than_the_queue_is_accepted_while_nothing_waits() -> None:
    async with running(BatchLimits(64, 4, queue_tokens=20)) as run:
        outcomes = await run.batcher.run([text(10, number) for number in range(9)])
    assert [number(outcome) for outcome in outcomes] == list(range(9))


async def test_retry_after_is_the_waiting_tokens_over_the_measured_rate() -> None:
    clock = Clock()
    async with running(BatchLimits(64, 4, queue_tokens=40), clock) as run:
        await run.measure_slowness(clock)
        holding = await run.hold()
        waiting = run.begin([text(33, 1)])
        await run.until_waiting(1)
        with pytest.raises(Overloaded) as refused:
            await run.batcher.run([text(8, 2)])
        assert refused.value.headers == {"Retry-After": "6"}  # 33 tokens at 6 per second
        run.model.gate.set()
        await asyncio.gather(holding, waiting)


# Start and stop.


async def test_stopping_finishes_waiting_texts_and_refuses_new_ones() -> None:
    async with running() as run:
        holding = await run.hold()
        waiting = run.begin([text(5, 1), text(50, 2)])
        await run.until_waiting(2)
        stopping = asyncio.ensure_future(run.batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(NotReady):
            await run.batcher.run([text(5, 3)])
        assert not stopping.done()
        run.model.gate.set()
        await stopping
        assert [number(outcome) for outcome in [*await holding, *await waiting]] == [0, 1, 2]
        await run.batcher.stop()
    assert run.batcher.healthy
    assert not run.batcher.accepting


async def test_before_its_start_a_batcher_refuses_and_can_be_stopped() -> None:
    batcher = Batcher(HeldModel().infer, LIMITS, lambda _: None, lambda _: None)
    with pytest.raises(NotReady):
        await batcher.run([text(3)])
    await batcher.stop()


# Reports.


async def test_a_report_has_the_sizes_of_its_batch() -> None:
    async with running() as run:
        holding = await run.hold()
        waiting = run.begin([text(10, 1), text(11, 2)])
        await run.until_waiting(2)
        run.model.gate.set()
        await asyncio.gather(holding, waiting)
    _, report = run.reports
    assert (len(report.queued_s), report.tokens, report.padded_tokens) == (2, 21, 22)
    assert all(queued_s >= 0 for queued_s in report.queued_s)


async def test_the_depth_is_reported_while_the_model_is_busy() -> None:
    async with running() as run:
        holding = await run.hold()
        staying, withdrawn = run.begin([text(10, 1)]), run.begin([text(11, 2), text(11, 3)])
        await run.until_waiting(3)
        withdrawn.cancel()
        await run.until_waiting(1)
        assert run.depths == [0, 1, 0, 1, 3, 1]
        run.model.gate.set()
        await asyncio.gather(holding, staying)
    assert run.depths[-1] == 0


# In the event loop.


async def test_texts_that_run_inline_are_answered_and_reported_like_others() -> None:
    async with running() as run:
        first, failed, last = run.batcher.run_inline([text(3, 1), text(3, POISON), text(9, 2)])
        assert run.model.threads == [threading.get_ident()] * 3
        assert isinstance(first, InferenceResult)
        assert isinstance(last, InferenceResult)
        assert (first.row.tolist(), last.row.tolist()) == ([1, 3], [2, 9])
        assert isinstance(failed, InferenceFailed)
        assert len(run.busy_at_reports) == 2
        assert run.busy_at_reports[0], "the other texts are still pending"
        assert not run.batcher.busy
        (queued,) = await run.batcher.run([text(4, 7)])
        assert isinstance(queued, InferenceResult)
        assert run.reports[-1].tokens == 4


async def test_nothing_runs_inline_after_the_stop() -> None:
    async with running() as run:
        await run.batcher.stop()
        with pytest.raises(NotReady):
            run.batcher.run_inline([text(3)])
        assert not run.model.seen
