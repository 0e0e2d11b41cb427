from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import DeadlineExceeded, EmptyText, InferenceFailed, Overloaded
from service.inference.cache import CachedPredictor, cache_key
from service.inference.engine import Engine
from service.inference.predictor import Classification, Item
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes

pytestmark = pytest.mark.anyio

GOOD, BAD, FINE = Item("good day"), Item("bad day"), Item("fine day")


@pytest.fixture
def runtime() -> fakes.FakeRuntime:
    return fakes.FakeRuntime()


@pytest.fixture
async def engine(tmp_path: Path, metrics: Metrics, runtime: fakes.FakeRuntime) -> AsyncIterator[Engine]:
    limits = replace(fakes.LIMITS, batch_items=1)  # so that batches count texts
    engine = fakes.make_engine(tmp_path, metrics, runtime, limits)
    await engine.start()
    runtime.batches.clear()
    yield engine
    runtime.gate.set()
    await engine.stop()


@pytest.fixture
def cache(engine: Engine, metrics: Metrics) -> CachedPredictor:
    return CachedPredictor(engine, 2, metrics.task("sentiment"))


@pytest.fixture
def sharing(engine: Engine, metrics: Metrics) -> CachedPredictor:
    return CachedPredictor(engine, 0, metrics.task("sentiment"))


def counted(metrics: Metrics, name: str) -> float:
    lines = metrics.render().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


async def hold(runtime: fakes.FakeRuntime, cache: CachedPredictor, *items: Item) -> asyncio.Task[object]:
    """Close the gate and let one call hold the model."""
    runtime.gate.clear()
    runtime.entered.clear()
    holding: asyncio.Task[object] = asyncio.ensure_future(cache.predict(items))
    assert await asyncio.to_thread(runtime.entered.wait, 60)
    return holding


async def until_waiting(task: asyncio.Task[object]) -> None:
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()


async def test_concurrent_identical_texts_are_computed_once(
    sharing: CachedPredictor, runtime: fakes.FakeRuntime, metrics: Metrics
) -> None:
    holding = await hold(runtime, sharing, GOOD)
    followers = [asyncio.ensure_future(sharing.predict([GOOD])) for _ in range(5)]
    await until_waiting(followers[0])
    runtime.gate.set()
    answers = [await follower for follower in followers]
    await holding
    outcomes = [answer.outcomes[0] for answer in answers]
    assert isinstance(outcomes[0], Classification)
    assert outcomes[0].label == "positive"
    assert outcomes == [outcomes[0]] * 5
    assert len(runtime.batches) == 1
    assert answers[0].timings.infer_s == 0
    assert answers[0].timings.queue_s > 0
    assert counted(metrics, "heed_items_shared_total") == 5
    assert counted(metrics, "heed_items_total") == 6


async def test_a_repeated_text_of_a_request_is_computed_once_and_answered_twice(
    sharing: CachedPredictor, runtime: fakes.FakeRuntime, metrics: Metrics
) -> None:
    answer = await sharing.predict([GOOD, BAD, GOOD, Item(" "), Item(" ")])
    labels = [outcome.label if isinstance(outcome, Classification) else type(outcome) for outcome in answer.outcomes]
    assert labels == ["positive", "negative", "positive", EmptyText, EmptyText]
    assert len(runtime.batches) == 2
    assert counted(metrics, "heed_items_shared_total") == 1


async def test_a_cache_of_no_entries_keeps_nothing(sharing: CachedPredictor, runtime: fakes.FakeRuntime) -> None:
    await sharing.predict([GOOD])
    await sharing.predict([GOOD])
    assert len(runtime.batches) == 2


async def test_the_cache_answers_repeats_and_evicts_the_least_recently_used(
    cache: CachedPredictor, runtime: fakes.FakeRuntime, metrics: Metrics
) -> None:
    first = await cache.predict([GOOD, BAD])
    again = await cache.predict([GOOD])
    assert again.outcomes == first.outcomes[:1]
    assert again.timings.infer_s == 0
    assert len(runtime.batches) == 2
    await cache.predict([FINE])  # evicts BAD, since GOOD was requested again
    await cache.predict([GOOD])
    assert len(runtime.batches) == 3
    await cache.predict([BAD])
    assert len(runtime.batches) == 4
    assert counted(metrics, "heed_items_cached_total") == 2
    assert counted(metrics, "heed_cache_entries") == 2


async def test_failures_are_not_cached(cache: CachedPredictor, runtime: fakes.FakeRuntime) -> None:
    for _ in range(2):
        answer = await cache.predict([Item("poison")])
        assert isinstance(answer.outcomes[0], InferenceFailed)
    assert len(runtime.batches) == 2


async def test_the_key_depends_on_text_entity_and_truncation() -> None:
    keys = [
        cache_key(item, truncate)
        for item in (Item("ab"), Item("a", "b"), Item("a"), Item("ab", "c"), Item("a", "bc"), Item("a", ""))
        for truncate in (True, False)
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key(Item("a", "b"), True) == cache_key(Item("a", "b"), True)


async def test_other_callers_are_answered_if_the_first_disconnects(
    sharing: CachedPredictor, runtime: fakes.FakeRuntime
) -> None:
    holding = await hold(runtime, sharing, FINE)
    first: asyncio.Task[object] = asyncio.ensure_future(sharing.predict([GOOD]))
    await until_waiting(first)
    second = asyncio.ensure_future(sharing.predict([GOOD]))
    await until_waiting(first)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    runtime.gate.set()
    assert isinstance((await second).outcomes[0], Classification)
    await holding


async def test_other_callers_are_answered_if_the_first_times_out(
    sharing: CachedPredictor, runtime: fakes.FakeRuntime
) -> None:
    holding = await hold(runtime, sharing, FINE)
    hurried = asyncio.ensure_future(sharing.predict([GOOD], deadline_s=time.monotonic() + 0.05))
    await asyncio.sleep(0)
    patient = asyncio.ensure_future(sharing.predict([GOOD]))
    assert isinstance((await hurried).outcomes[0], DeadlineExceeded)
    runtime.gate.set()
    assert isinstance((await patient).outcomes[0], Classification)
    await holding


async def test_a_follower_has_a_deadline_of_its_own(sharing: CachedPredictor, runtime: fakes.FakeRuntime) -> None:
    holding = await hold(runtime, sharing, GOOD)
    hurried = await sharing.predict([GOOD], deadline_s=time.monotonic() + 0.05)
    assert isinstance(hurried.outcomes[0], DeadlineExceeded)
    runtime.gate.set()
    await holding


async def test_a_text_can_be_computed_after_its_first_caller_was_refused(
    tmp_path: Path, metrics: Metrics, runtime: fakes.FakeRuntime
) -> None:
    engine = fakes.make_engine(tmp_path, metrics, runtime, replace(fakes.LIMITS, queue_tokens=8))
    await engine.start()
    cache = CachedPredictor(engine, 0, metrics.task("sentiment"))
    holding = await hold(runtime, cache, FINE)
    waiting: asyncio.Task[object] = asyncio.ensure_future(cache.predict([Item("good " * 8)]))
    await until_waiting(waiting)
    with pytest.raises(Overloaded):
        await cache.predict([BAD])
    runtime.gate.set()
    await asyncio.gather(holding, waiting)
    assert isinstance((await cache.predict([BAD])).outcomes[0], Classification)
    await engine.stop()
