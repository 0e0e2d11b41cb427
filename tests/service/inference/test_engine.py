from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from models.bundle import load_bundle
from models.prediction.calibration import LogitScaling, calibration_key
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Encoding
from models.text.tokenizer import Tokenizer
from service.errors import InferenceFailed, NotReady, Overloaded, Problem
from service.inference.engine import Engine
from service.inference.predictor import Classification, Item, Prediction
from service.telemetry.metrics import Metrics
from tests.service.telemetry.test_metrics import samples
from tests.support import fake_model as fakes
from tests.support.tiny_bundle import tiny_bundle

pytestmark = pytest.mark.anyio


class RecordingTokenizer(Tokenizer):
    """A tokenizer that records the threads of its calls."""

    threads: set[str]

    def encode(self, text: str, entity: str | None = None) -> Encoding:
        self.threads.add(threading.current_thread().name)
        return super().encode(text, entity)


@pytest.fixture
def runtime() -> fakes.FakeRuntime:
    return fakes.FakeRuntime()


@pytest.fixture
def engine(tmp_path: Path, metrics: Metrics, runtime: fakes.FakeRuntime) -> Engine:
    return fakes.make_engine(tmp_path, metrics, runtime)


@asynccontextmanager
async def started(engine: Engine, runtime: fakes.FakeRuntime) -> AsyncIterator[Engine]:
    await engine.start()
    try:
        yield engine
    finally:
        runtime.gate.set()
        await engine.stop()


def labels_or_codes(outcomes: tuple[Prediction | Problem, ...]) -> list[str]:
    return [fakes.label_or_code(outcome) for outcome in outcomes]


async def test_texts_are_answered_in_order(engine: Engine, runtime: fakes.FakeRuntime) -> None:
    async with started(engine, runtime):
        answer = await engine.predict([Item("bad news"), Item("good"), Item("so so day", entity="day")])
    assert labels_or_codes(answer.outcomes) == ["negative", "positive", "neutral"]
    first = answer.outcomes[0]
    assert isinstance(first, Classification)
    assert (first.tokens, first.truncated) == (4, False)
    assert answer.timings.tokenize_s > 0
    assert answer.timings.infer_s > 0


async def test_a_fault_of_one_text_does_not_affect_the_others(engine: Engine, runtime: fakes.FakeRuntime) -> None:
    items = [Item("good"), Item(" \u200b\0"), Item("good", " "), Item("poison x"), Item("nan"), Item("bad")]
    async with started(engine, runtime):
        answer = await engine.predict(items)
    assert labels_or_codes(answer.outcomes) == [
        "positive",
        "empty_text",
        "invalid_request",
        "inference_failed",
        "inference_failed",
        "negative",
    ]


async def test_a_long_text_is_truncated_or_refused(engine: Engine, runtime: fakes.FakeRuntime) -> None:
    items = [Item("good " * 600), Item("good")]
    async with started(engine, runtime):
        truncated, short = (await engine.predict(items)).outcomes
        refused = await engine.predict(items, truncate=False)
    assert isinstance(truncated, Classification)
    assert isinstance(short, Classification)
    assert (truncated.truncated, truncated.tokens, short.truncated) == (True, 512, False)
    assert labels_or_codes(refused.outcomes) == ["text_too_long", "positive"]


async def test_an_engine_is_ready_after_answering_real_shapes(engine: Engine, runtime: fakes.FakeRuntime) -> None:
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


async def test_a_failing_warm_up_fails_the_start(engine: Engine, runtime: fakes.FakeRuntime) -> None:
    def refuse(_: object) -> None:
        raise RuntimeError

    runtime.on_run = refuse
    with pytest.raises(InferenceFailed):
        await engine.start()
    assert not engine.ready
    await engine.stop()


async def test_the_warm_up_is_not_counted(engine: Engine, runtime: fakes.FakeRuntime, metrics: Metrics) -> None:
    async with started(engine, runtime):
        assert samples(metrics)["heed_batch_items_sum", "sentiment"] == 0
        await engine.predict([Item("good"), Item("bad"), Item("")])
        values = samples(metrics)
    assert values["heed_batch_items_sum", "sentiment"] == 2
    assert values["heed_tokenize_seconds_count", "sentiment"] == 1


async def test_the_model_runs_in_one_named_thread(engine: Engine, runtime: fakes.FakeRuntime) -> None:
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
async def test_only_large_requests_are_tokenized_outside_the_event_loop(
    tmp_path: Path, metrics: Metrics, runtime: fakes.FakeRuntime, items: list[Item], inline: bool
) -> None:
    tokenizer = RecordingTokenizer(fakes.write_tokenizer_file(tmp_path), 512)
    engine = fakes.make_engine(tmp_path, metrics, runtime, tokenizer=tokenizer)
    tokenizer.threads = set()
    async with started(engine, runtime):
        tokenizer.threads = set()
        await engine.predict(items)
    assert (tokenizer.threads == {threading.current_thread().name}) is inline


async def test_cancelling_withdraws_waiting_texts(engine: Engine, runtime: fakes.FakeRuntime, metrics: Metrics) -> None:
    async with started(engine, runtime):
        holding = await hold(engine, runtime)
        waiting = asyncio.ensure_future(engine.predict([Item("bad"), Item("fine")]))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        runtime.batches.clear()
        runtime.gate.set()
        await holding
    assert len(runtime.batches) == 1
    assert samples(metrics)["heed_queue_depth", "sentiment"] == 0


async def test_after_the_deadline_every_text_gets_deadline_exceeded(engine: Engine, runtime: fakes.FakeRuntime) -> None:
    async with started(engine, runtime):
        holding = await hold(engine, runtime)
        answer = await engine.predict([Item("bad"), Item("")], deadline_s=time.monotonic() + 0.02)
        assert labels_or_codes(answer.outcomes) == ["deadline_exceeded", "empty_text"]
        runtime.gate.set()
        await holding


async def test_a_full_queue_refuses_a_request(tmp_path: Path, metrics: Metrics, runtime: fakes.FakeRuntime) -> None:
    limits = dataclasses.replace(fakes.LIMITS, queue_tokens=3)
    engine = fakes.make_engine(tmp_path, metrics, runtime, limits)
    async with started(engine, runtime):
        holding = await hold(engine, runtime)
        waiting = asyncio.ensure_future(engine.predict([Item("good")]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await engine.predict([Item("good")])
        runtime.gate.set()
        await asyncio.gather(holding, waiting)


async def test_a_request_that_would_be_late_is_refused_before_it_is_tokenized(
    tmp_path: Path, metrics: Metrics, runtime: fakes.FakeRuntime
) -> None:
    times = count(0.0, 100.0)  # each reading is 100 s later, so the warm-up is slow
    now_s = 0.0
    tokenizer = RecordingTokenizer(fakes.write_tokenizer_file(tmp_path), 512)
    tokenizer.threads = set()
    engine = fakes.make_engine(tmp_path, metrics, runtime, tokenizer=tokenizer, clock=lambda: now_s or next(times))
    async with started(engine, runtime):
        holding = await hold(engine, runtime)
        tokenizer.threads = set()
        now_s = next(times)
        with pytest.raises(Overloaded):
            await engine.predict([Item("good")], deadline_s=now_s + 0.1)
        assert tokenizer.threads == set()
        runtime.gate.set()
        await holding


async def test_a_dead_inference_thread_is_unhealthy(engine: Engine, runtime: fakes.FakeRuntime) -> None:
    def die(_: object) -> None:
        raise SystemExit

    async with started(engine, runtime):
        runtime.on_run = die
        assert labels_or_codes((await engine.predict([Item("good")])).outcomes) == ["not_ready"]
        assert not engine.healthy
        assert not engine.ready


async def test_a_language_without_a_calibration_gets_the_first(
    tmp_path: Path, metrics: Metrics, runtime: fakes.FakeRuntime
) -> None:
    scaling = LogitScaling(1.0, 0.0, (0.0, 9.0, 0.0))
    bundle = dataclasses.replace(fakes.make_bundle(tmp_path), languages=("en",), calibration={"en": scaling})
    engine = fakes.make_engine(tmp_path, metrics, runtime, bundle=bundle)
    async with started(engine, runtime):
        assert labels_or_codes((await engine.predict([Item("坏消息")])).outcomes) == ["neutral"]


async def test_a_text_with_an_entity_gets_the_calibration_for_entities(
    engine: Engine, runtime: fakes.FakeRuntime
) -> None:
    calibration = {**engine.bundle.calibration, calibration_key("en", True): LogitScaling(1.0, 0.0, (0.0, 90.0, 0.0))}
    engine.bundle = dataclasses.replace(engine.bundle, calibration=calibration)
    async with started(engine, runtime):
        answer = await engine.predict([Item("good day"), Item("good day", "day"), Item("good day")])
    assert labels_or_codes(answer.outcomes) == ["positive", "neutral", "positive"]


async def test_a_text_gets_the_same_answer_alone_and_in_a_batch(engine: Engine, runtime: fakes.FakeRuntime) -> None:
    words = ["good", "bad", "fine"]
    rng = np.random.default_rng(7)
    texts = [" ".join(rng.choice(words, size=rng.integers(1, 60))) for _ in range(100)]
    async with started(engine, runtime):
        together = (await engine.predict([Item(text) for text in texts])).outcomes
        alone = [(await engine.predict([Item(text)])).outcomes[0] for text in texts]
    assert list(together) == alone


async def hold(engine: Engine, runtime: fakes.FakeRuntime) -> asyncio.Task[object]:
    """Close the gate and let one text hold the model."""
    runtime.gate.clear()
    runtime.entered.clear()
    holding: asyncio.Task[object] = asyncio.ensure_future(engine.predict([Item("good")]))
    assert await asyncio.to_thread(runtime.entered.wait, 60)
    return holding


# With the real tiny model.


@pytest.fixture
def real_engine(tmp_path: Path, metrics: Metrics) -> Engine:
    bundle = load_bundle(tiny_bundle(tmp_path))
    tokenizer = Tokenizer.from_bundle(bundle)
    limits = dataclasses.replace(fakes.LIMITS, batch_tokens=160)  # less than the longest text
    return Engine(bundle, tokenizer, OnnxRuntime(bundle.graph), limits, metrics.task("sentiment"))


async def test_a_real_model_gives_the_same_answer_alone_and_in_a_batch(real_engine: Engine) -> None:
    texts = ["股票上涨", "profit falls", *("the bank of china " * count for count in range(1, 30)), "下跌" * 200]
    await real_engine.start()
    together = (await real_engine.predict([Item(text) for text in texts])).outcomes
    alone = [(await real_engine.predict([Item(text)])).outcomes[0] for text in texts]
    await real_engine.stop()
    for batched, single in zip(together, alone, strict=True):
        assert isinstance(batched, Classification)
        assert isinstance(single, Classification)
        assert batched.label == single.label
        assert list(batched.scores.values()) == pytest.approx(list(single.scores.values()), abs=1e-3)


async def test_a_real_model_truncates_a_word_of_a_megabyte(real_engine: Engine) -> None:
    await real_engine.start()
    (outcome,) = (await real_engine.predict([Item("a" * 2**20)])).outcomes
    await real_engine.stop()
    assert isinstance(outcome, Classification)
    assert (outcome.truncated, outcome.tokens) == (True, 512)
