from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import DeadlineExceeded, EmptyText, InferenceFailed, Overloaded
from service.inference.cache import CachedPredictor, key_of
from service.inference.engine import Engine
from service.inference.predictor import Classification, Item
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes

pytestmark = pytest.mark.anyio

GOOD, BAD, FINE = Item("good day"), Item("bad day"), Item("fine day")


@pytest.fixture
def runtime() -> fakes.FirstWord:
    return fakes.FirstWord()


@pytest.fixture
async def engine(tmp_path: Path, metrics: Metrics, runtime: fakes.FirstWord) -> AsyncIterator[Engine]:
    limits = replace(fakes.LIMITS, batch_items=1)  # one row is one text: easy to count
    engine = fakes.engine(tmp_path, metrics, runtime, limits)
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


async def hold(runtime: fakes.FirstWord, cache: CachedPredictor, *items: Item) -> asyncio.Task[object]:
    """Let one call reach the model and keep it there."""
    runtime.gate.clear()
    runtime.entered.clear()
    first: asyncio.Task[object] = asyncio.ensure_future(cache.predict(items))
    assert await asyncio.to_thread(runtime.entered.wait, 60)
    return first


async def begun(task: asyncio.Task[object]) -> None:
    for _ in range(10):
        await asyncio.sleep(0)
    assert not task.done()


async def test_identical_texts_under_way_are_computed_once(
    sharing: CachedPredictor, runtime: fakes.FirstWord, metrics: Metrics
) -> None:
    first = await hold(runtime, sharing, GOOD)
    others = [asyncio.ensure_future(sharing.predict([GOOD])) for _ in range(5)]
    await begun(others[0])
    runtime.gate.set()
    answers = [await other for other in others]
    await first
    outcomes = [answer.outcomes[0] for answer in answers]
    assert isinstance(outcomes[0], Classification)
    assert outcomes[0].label == "positive"
    assert outcomes == [outcomes[0]] * 5
    assert len(runtime.batches) == 1
    assert answers[0].timings.infer_s == 0
    assert answers[0].timings.queue_s > 0
    assert counted(metrics, "heed_items_shared_total") == 5
    assert counted(metrics, "heed_items_total") == 6


async def test_a_text_twice_in_one_request_is_computed_once_and_answered_twice(
    sharing: CachedPredictor, runtime: fakes.FirstWord, metrics: Metrics
) -> None:
    answer = await sharing.predict([GOOD, BAD, GOOD, Item(" "), Item(" ")])
    labels = [o.label if isinstance(o, Classification) else type(o) for o in answer.outcomes]
    assert labels == ["positive", "negative", "positive", EmptyText, EmptyText]
    assert len(runtime.batches) == 2
    assert counted(metrics, "heed_items_shared_total") == 1


async def test_nothing_is_kept_unless_asked_for(sharing: CachedPredictor, runtime: fakes.FirstWord) -> None:
    await sharing.predict([GOOD])
    await sharing.predict([GOOD])
    assert len(runtime.batches) == 2


async def test_the_cache_answers_repeats_and_forgets_the_least_recent(
    cache: CachedPredictor, runtime: fakes.FirstWord, metrics: Metrics
) -> None:
    first = await cache.predict([GOOD, BAD])
    again = await cache.predict([GOOD])
    assert again.outcomes == first.outcomes[:1]
    assert again.timings.infer_s == 0
    assert len(runtime.batches) == 2
    await cache.predict([FINE])  # pushes out BAD, since GOOD was asked again
    await cache.predict([GOOD])
    assert len(runtime.batches) == 3
    await cache.predict([BAD])
    assert len(runtime.batches) == 4
    assert counted(metrics, "heed_items_cached_total") == 2
    assert counted(metrics, "heed_cache_entries") == 2


async def test_failures_are_not_kept(cache: CachedPredictor, runtime: fakes.FirstWord) -> None:
    for _ in range(2):
        answer = await cache.predict([Item("poison")])
        assert isinstance(answer.outcomes[0], InferenceFailed)
    assert len(runtime.batches) == 2


async def test_the_text_the_entity_and_the_truncation_make_the_question() -> None:
    asked = [
        key_of(item, truncate)
        for item in (Item("ab"), Item("a", "b"), Item("a"), Item("ab", "c"), Item("a", "bc"), Item("a", ""))
        for truncate in (True, False)
    ]
    assert len(set(asked)) == len(asked)
    assert key_of(Item("a", "b"), True) == key_of(Item("a", "b"), True)


async def test_when_the_first_caller_goes_away_the_others_are_still_answered(
    sharing: CachedPredictor, runtime: fakes.FirstWord
) -> None:
    holding = await hold(runtime, sharing, FINE)
    first: asyncio.Task[object] = asyncio.ensure_future(sharing.predict([GOOD]))
    await begun(first)
    second = asyncio.ensure_future(sharing.predict([GOOD]))
    await begun(first)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    runtime.gate.set()
    assert isinstance((await second).outcomes[0], Classification)
    await holding


async def test_a_hurried_first_caller_does_not_take_the_others_with_it(
    sharing: CachedPredictor, runtime: fakes.FirstWord
) -> None:
    holding = await hold(runtime, sharing, FINE)
    hurried = asyncio.ensure_future(sharing.predict([GOOD], deadline_s=time.monotonic() + 0.05))
    await asyncio.sleep(0)
    patient = asyncio.ensure_future(sharing.predict([GOOD]))
    assert isinstance((await hurried).outcomes[0], DeadlineExceeded)
    runtime.gate.set()
    assert isinstance((await patient).outcomes[0], Classification)
    await holding


async def test_a_hurried_follower_gets_its_own_deadline(sharing: CachedPredictor, runtime: fakes.FirstWord) -> None:
    holding = await hold(runtime, sharing, GOOD)
    hurried = await sharing.predict([GOOD], deadline_s=time.monotonic() + 0.05)
    assert isinstance(hurried.outcomes[0], DeadlineExceeded)
    runtime.gate.set()
    await holding


async def test_a_refused_first_caller_leaves_nothing_behind(
    tmp_path: Path, metrics: Metrics, runtime: fakes.FirstWord
) -> None:
    engine = fakes.engine(tmp_path, metrics, runtime, replace(fakes.LIMITS, queue_tokens=8))
    await engine.start()
    cache = CachedPredictor(engine, 0, metrics.task("sentiment"))
    holding = await hold(runtime, cache, FINE)
    waiting: asyncio.Task[object] = asyncio.ensure_future(cache.predict([Item("good " * 8)]))
    await begun(waiting)
    with pytest.raises(Overloaded):
        await cache.predict([BAD])
    runtime.gate.set()
    await asyncio.gather(holding, waiting)
    assert isinstance((await cache.predict([BAD])).outcomes[0], Classification)
    await engine.stop()
