from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from models.bundle import load_bundle
from models.prediction.calibration import LogitScaling, calibration_key
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Encoding
from models.text.tokenizer import Tokenizer
from service.errors import InferenceFailed, NotReady, Overloaded, Problem
from service.inference import batcher as batching
from service.inference.engine import Engine
from service.inference.predictor import Classification, Item, Prediction
from service.telemetry.metrics import Metrics
from tests.service.telemetry.test_metrics import samples
from tests.support import fake_model as fakes
from tests.support.tiny_bundle import tiny_bundle

pytestmark = pytest.mark.anyio


class Watched(Tokenizer):
    """Remembers in which threads it was called."""

    threads: set[str]

    def encode(self, text: str, entity: str | None = None) -> Encoding:
        self.threads.add(threading.current_thread().name)
        return super().encode(text, entity)


@pytest.fixture
def runtime() -> fakes.FirstWord:
    return fakes.FirstWord()


@pytest.fixture
def engine(tmp_path: Path, metrics: Metrics, runtime: fakes.FirstWord) -> Engine:
    return fakes.engine(tmp_path, metrics, runtime)


@asynccontextmanager
async def started(engine: Engine, runtime: fakes.FirstWord) -> AsyncIterator[Engine]:
    await engine.start()
    try:
        yield engine
    finally:
        runtime.gate.set()
        await engine.stop()


def described(outcomes: tuple[Prediction | Problem, ...]) -> list[str]:
    return [fakes.told(one) for one in outcomes]


async def test_answers_in_order(engine: Engine, runtime: fakes.FirstWord) -> None:
    async with started(engine, runtime):
        answer = await engine.predict([Item("bad news"), Item("good"), Item("so so day", entity="day")])
    assert described(answer.outcomes) == ["negative", "positive", "neutral"]
    first = answer.outcomes[0]
    assert isinstance(first, Classification)
    assert (first.tokens, first.truncated) == (4, False)
    assert answer.timings.tokenize_s > 0
    assert answer.timings.infer_s > 0


async def test_what_is_wrong_with_one_text_is_that_texts_alone(engine: Engine, runtime: fakes.FirstWord) -> None:
    items = [Item("good"), Item(" \u200b\0"), Item("good", " "), Item("poison x"), Item("nan"), Item("bad")]
    async with started(engine, runtime):
        answer = await engine.predict(items)
    assert described(answer.outcomes) == [
        "positive",
        "empty_text",
        "invalid_request",
        "inference_failed",
        "inference_failed",
        "negative",
    ]


async def test_a_long_text_is_shortened_and_says_so_or_is_refused(engine: Engine, runtime: fakes.FirstWord) -> None:
    long = [Item("good " * 600), Item("good")]
    async with started(engine, runtime):
        shortened, short = (await engine.predict(long)).outcomes
        refused = await engine.predict(long, truncate=False)
    assert isinstance(shortened, Classification)
    assert isinstance(short, Classification)
    assert (shortened.truncated, shortened.tokens, short.truncated) == (True, 512, False)
    assert described(refused.outcomes) == ["text_too_long", "positive"]


async def test_is_ready_once_it_has_answered_real_shapes(engine: Engine, runtime: fakes.FirstWord) -> None:
    assert not engine.ready
    with pytest.raises(NotReady):
        await engine.predict([Item("good")])
    async with started(engine, runtime):
        assert engine.ready
        shapes = [batch.ids.shape for batch in runtime.batches]
        assert (1, 512) in shapes
        assert max(rows for rows, _ in shapes) > 1
    assert not engine.ready
    assert engine.healthy


async def test_a_model_that_fails_while_warming_up_fails_the_start(engine: Engine, runtime: fakes.FirstWord) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError

    runtime.on_run = refuse
    with pytest.raises(InferenceFailed):
        await engine.start()
    assert not engine.ready
    await engine.stop()


async def test_warming_up_is_not_counted(engine: Engine, runtime: fakes.FirstWord, metrics: Metrics) -> None:
    async with started(engine, runtime):
        assert samples(metrics)["heed_batch_items_sum", "sentiment"] == 0
        await engine.predict([Item("good"), Item("bad"), Item("")])
        found = samples(metrics)
    assert found["heed_batch_items_sum", "sentiment"] == 2
    assert found["heed_tokenize_seconds_count", "sentiment"] == 1


async def test_the_model_runs_in_one_named_thread(engine: Engine, runtime: fakes.FirstWord) -> None:
    names: set[str] = set()
    runtime.on_run = lambda _: names.add(threading.current_thread().name)
    async with started(engine, runtime):
        await asyncio.gather(*(engine.predict([Item("good")]) for _ in range(20)))
    assert names == {"sentiment-inference"}


@pytest.mark.parametrize(
    ("items", "inline"),
    [([Item("good")] * 16, True), ([Item("good")] * 17, False), ([Item("x" * 16_001)], False)],
    ids=["few", "many", "long"],
)
async def test_large_requests_are_tokenized_outside_of_the_event_loop(
    tmp_path: Path, metrics: Metrics, runtime: fakes.FirstWord, items: list[Item], inline: bool
) -> None:
    watched = Watched(fakes.tokenizer_file(tmp_path), 512)
    engine = fakes.engine(tmp_path, metrics, runtime, tokenizer=watched)
    watched.threads = set()
    async with started(engine, runtime):
        watched.threads = set()
        await engine.predict(items)
    assert (watched.threads == {threading.current_thread().name}) is inline


async def test_cancelling_withdraws_what_waits(engine: Engine, runtime: fakes.FirstWord, metrics: Metrics) -> None:
    async with started(engine, runtime):
        first = await held(engine, runtime)
        waiting = asyncio.ensure_future(engine.predict([Item("bad"), Item("fine")]))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        runtime.batches.clear()
        runtime.gate.set()
        await first
    assert len(runtime.batches) == 1
    assert samples(metrics)["heed_queue_depth", "sentiment"] == 0


async def test_past_the_deadline_every_text_says_so(engine: Engine, runtime: fakes.FirstWord) -> None:
    async with started(engine, runtime):
        first = await held(engine, runtime)
        answer = await engine.predict([Item("bad"), Item("")], deadline_s=time.monotonic() + 0.02)
        assert described(answer.outcomes) == ["deadline_exceeded", "empty_text"]
        runtime.gate.set()
        await first


async def test_a_full_queue_refuses_the_request(tmp_path: Path, metrics: Metrics, runtime: fakes.FirstWord) -> None:
    limits = dataclasses.replace(fakes.LIMITS, queue_tokens=3)
    engine = fakes.engine(tmp_path, metrics, runtime, limits)
    async with started(engine, runtime):
        first = await held(engine, runtime)
        waiting = asyncio.ensure_future(engine.predict([Item("good")]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await engine.predict([Item("good")])
        runtime.gate.set()
        await asyncio.gather(first, waiting)


async def test_what_waits_too_long_is_refused_before_it_is_tokenized(
    tmp_path: Path, metrics: Metrics, runtime: fakes.FirstWord, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count(0.0, 100.0)  # every look at it is 100 s later, so warming up is slow
    now_s = 0.0
    monkeypatch.setattr(batching, "time", SimpleNamespace(monotonic=lambda: now_s or next(clock)))
    watched = Watched(fakes.tokenizer_file(tmp_path), 512)
    watched.threads = set()
    engine = fakes.engine(tmp_path, metrics, runtime, tokenizer=watched)
    async with started(engine, runtime):
        first = await held(engine, runtime)
        watched.threads = set()
        now_s = next(clock)
        with pytest.raises(Overloaded):
            await engine.predict([Item("good")], deadline_s=now_s + 0.1)
        assert watched.threads == set()
        runtime.gate.set()
        await first


async def test_a_dead_inference_thread_is_unhealthy(engine: Engine, runtime: fakes.FirstWord) -> None:
    def die(_: object) -> None:
        raise SystemExit

    async with started(engine, runtime):
        runtime.on_run = die
        assert described((await engine.predict([Item("good")])).outcomes) == ["not_ready"]
        assert not engine.healthy
        assert not engine.ready


async def test_a_language_without_its_own_calibration_gets_the_first(
    tmp_path: Path, metrics: Metrics, runtime: fakes.FirstWord
) -> None:
    scaling = LogitScaling(1.0, 0.0, (0.0, 9.0, 0.0))
    bundle = dataclasses.replace(fakes.bundle(tmp_path), languages=("en",), calibration={"en": scaling})
    engine = fakes.engine(tmp_path, metrics, runtime, bundle=bundle)
    async with started(engine, runtime):
        assert described((await engine.predict([Item("坏消息")])).outcomes) == ["neutral"]


async def test_a_text_about_an_entity_gets_the_calibration_for_entities(
    engine: Engine, runtime: fakes.FirstWord
) -> None:
    loud = {**engine.bundle.calibration, calibration_key("en", True): LogitScaling(1.0, 0.0, (0.0, 90.0, 0.0))}
    engine.bundle = dataclasses.replace(engine.bundle, calibration=loud)
    async with started(engine, runtime):
        answer = await engine.predict([Item("good day"), Item("good day", "day"), Item("good day")])
    assert described(answer.outcomes) == ["positive", "neutral", "positive"]


async def test_a_text_is_answered_alike_alone_and_among_others(engine: Engine, runtime: fakes.FirstWord) -> None:
    words = ["good", "bad", "fine"]
    generator = np.random.default_rng(7)
    texts = [" ".join(generator.choice(words, size=generator.integers(1, 60))) for _ in range(100)]
    async with started(engine, runtime):
        together = (await engine.predict([Item(text) for text in texts])).outcomes
        alone = [(await engine.predict([Item(text)])).outcomes[0] for text in texts]
    assert list(together) == alone


async def held(engine: Engine, runtime: fakes.FirstWord) -> asyncio.Task[object]:
    """Shut the gate and let one text hold the model."""
    runtime.gate.clear()
    runtime.entered.clear()
    first: asyncio.Task[object] = asyncio.ensure_future(engine.predict([Item("good")]))
    assert await asyncio.to_thread(runtime.entered.wait, 60)
    return first


# With the real tiny model.


@pytest.fixture
def real(tmp_path: Path, metrics: Metrics) -> Engine:
    bundle = load_bundle(tiny_bundle(tmp_path))
    tokenizer = Tokenizer(bundle.tokenizer, bundle.max_tokens)
    shorter_than_a_text = dataclasses.replace(fakes.LIMITS, batch_tokens=160)
    return Engine(bundle, tokenizer, OnnxRuntime(bundle.graph), shorter_than_a_text, metrics.task("sentiment"))


async def test_a_real_model_answers_alike_alone_and_among_others(real: Engine) -> None:
    texts = ["股票上涨", "profit falls", *("the bank of china " * count for count in range(1, 30)), "下跌" * 200]
    await real.start()
    together = (await real.predict([Item(text) for text in texts])).outcomes
    alone = [(await real.predict([Item(text)])).outcomes[0] for text in texts]
    await real.stop()
    for one, other in zip(together, alone, strict=True):
        assert isinstance(one, Classification)
        assert isinstance(other, Classification)
        assert one.label == other.label
        assert list(one.scores.values()) == pytest.approx(list(other.scores.values()), abs=1e-3)


async def test_a_real_model_shortens_a_word_of_a_megabyte(real: Engine) -> None:
    await real.start()
    (outcome,) = (await real.predict([Item("a" * 2**20)])).outcomes
    await real.stop()
    assert isinstance(outcome, Classification)
    assert (outcome.truncated, outcome.tokens) == (True, 512)
