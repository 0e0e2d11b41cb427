"""Failures in the batcher: each caller ends, and a fault stays with the text that caused it."""

from __future__ import annotations

import pytest

from service.errors import InferenceFailed, NotReady
from tests.support.batching import POISON, number, running, text

pytestmark = pytest.mark.anyio


async def test_a_poisoned_text_fails_alone_after_one_retry() -> None:
    async with running() as run:
        holding = await run.hold()
        waiting = run.begin([text(5, 1), text(5, POISON), text(5, 2)])
        await run.until_waiting(3)
        run.model.gate.set()
        await holding
        first, poisoned, last = await waiting
        assert [number(first), number(last)] == [1, 2]
        assert isinstance(poisoned, InferenceFailed)
        assert run.model.batches == [[0], [1, POISON, 2], [1], [POISON], [2]]
        assert number((await run.batcher.run([text(3, 4)]))[0]) == 4
    assert run.batcher.healthy


async def test_a_missing_row_fails_the_whole_batch() -> None:
    async with running() as run:
        holding = await run.hold()
        waiting = run.begin([text(5, 1), text(5, 2)])
        await run.until_waiting(2)
        run.model.rows_lost = 1
        run.model.gate.set()
        assert [type(outcome) for outcome in [*await holding, *await waiting]] == [InferenceFailed] * 3


async def test_a_dead_thread_fails_its_callers_and_makes_the_batcher_unhealthy() -> None:
    async with running() as run:
        holding = await run.hold()
        waiting = run.begin([text(5, 1), text(50, 2)])
        await run.until_waiting(2)
        run.model.failure = SystemExit()
        run.model.gate.set()
        outcomes = [*await holding, *await waiting]
        assert [type(outcome) for outcome in outcomes] == [NotReady] * 3
        assert not run.batcher.healthy
        with pytest.raises(NotReady):
            await run.batcher.run([text(3)])


async def test_an_error_that_would_end_the_thread_ends_the_batcher_inline_too() -> None:
    async with running() as run:
        run.model.failure = SystemExit()
        outcomes = run.batcher.run_inline([text(3, 1), text(3, 2)])
        assert [type(outcome) for outcome in outcomes] == [NotReady, NotReady]
        assert run.model.seen == [1]
        assert not run.batcher.healthy
        with pytest.raises(NotReady):
            await run.batcher.run([text(3)])
