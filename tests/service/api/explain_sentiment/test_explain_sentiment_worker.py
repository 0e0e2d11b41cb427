"""The thread that explains sentiment: its queue, deadlines, failures and priority."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import Bundle
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch
from models.text.tokenizer import Tokenizer
from service.errors import NotReady
from service.explanation.request import ExplanationRequest, InstanceFactory, TextExplanation
from service.explanation.worker import ExplainableModel, ExplanationWorker
from tests.support.explain_sentiment_app import Explains, Gate, shown
from tests.support.service_app import assert_problem

pytestmark = pytest.mark.anyio

ASK: InstanceFactory = lambda explainer: explainer.text_instance("ab")  # noqa: E731


async def test_the_first_explanation_loads_the_graph(explains: Explains, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    init = OnnxRuntime.__init__

    def opening(runtime: OnnxRuntime, path: Path) -> None:
        opened.append(path)
        init(runtime, path)

    monkeypatch.setattr(OnnxRuntime, "__init__", opening)
    await explains.label("ab")
    assert opened == []
    shown(await explains.ask("ab"))
    shown(await explains.ask("cd"))
    assert len(opened) == 1


async def test_plain_texts_are_answered_during_an_explanation(
    explains: Explains, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    options = asyncio.create_task(explains.ask("ab cd"))
    await gate.holds()
    assert await explains.label("ab")
    gate.open.set()
    shown(await options)


@pytest.mark.slow
async def test_a_few_explanations_wait_and_more_are_refused(
    explains: Explains, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    options = [asyncio.create_task(explains.ask("ab cd")) for _ in range(5)]
    await gate.holds()
    assert_problem(await explains.ask("ab cd"), 429, "overloaded")
    gate.open.set()
    for answer in await asyncio.gather(*options):
        shown(answer)
    shown(await explains.ask("ab cd"))


async def test_an_explanation_that_waits_too_long_gets_504_and_leaves_the_queue(
    explains: Explains, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    patience = {"X-Request-Timeout-Ms": "300"}
    started_s = time.monotonic()
    first = asyncio.create_task(explains.ask("ab cd", patience))
    await gate.holds()
    assert_problem(await explains.ask("ab cd", patience), 504, "deadline_exceeded")
    assert_problem(await first, 504, "deadline_exceeded")
    assert time.monotonic() - started_s < 30
    gate.open.set()
    shown(await explains.ask("ab cd"))


@pytest.mark.slow
async def test_items_that_were_explained_in_time_have_results(
    explains: Explains, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, late = OnnxRuntime.run, threading.Event()

    def slow_on_long_ones(runtime: OnnxRuntime, batch: Batch) -> NDArray[np.float32]:
        if batch.ids.shape[1] > 40:
            late.wait(60)
        return run(runtime, batch)

    monkeypatch.setattr(OnnxRuntime, "run", slow_on_long_ones)
    first, second = (await explains.ask(["ab", "a" * 60], {"X-Request-Timeout-Ms": "5000"})).json()["results"]
    late.set()
    assert first["words"][0]["text"] == "ab"
    assert second["error"]["code"] == "deadline_exceeded"


async def test_the_work_for_a_disconnected_caller_ends_at_its_next_step(
    explains: Explains, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    options = asyncio.create_task(explains.ask(["ab cd ef"] * 16))
    await gate.holds()
    options.cancel()
    await asyncio.gather(options, return_exceptions=True)
    gate.open.set()
    runs = gate.runs
    shown(await explains.ask("ab"))
    assert gate.runs <= runs + 4


async def test_a_failure_of_the_model_is_the_error_of_its_text(
    explains: Explains, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxRuntime.run

    def failing(runtime: OnnxRuntime, batch: Batch) -> NDArray[np.float32]:
        if threading.current_thread().name.startswith("explain") and batch.ids.shape[1] > 40:
            raise RuntimeError("secret text of the runtime")
        rows = run(runtime, batch)
        return rows * np.nan if batch.ids.shape[1] > 20 else rows

    monkeypatch.setattr(OnnxRuntime, "run", failing)
    good, bad, nan = (await explains.ask(["ab", "a" * 60, "a" * 30])).json()["results"]
    assert good["label"]
    assert [result["error"]["code"] for result in (bad, nan)] == ["inference_failed"] * 2
    assert "secret" not in str(bad)


async def test_the_thread_has_the_lowest_priority(explains: Explains, monkeypatch: pytest.MonkeyPatch) -> None:
    run, result = OnnxRuntime.run, set()

    def noting(runtime: OnnxRuntime, batch: Batch) -> NDArray[np.float32]:
        thread = threading.current_thread().name.partition("_")[0]
        result.add((thread, os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        return run(runtime, batch)

    monkeypatch.setattr(OnnxRuntime, "run", noting)
    await explains.label("ab")
    shown(await explains.ask("ab"))
    niceness = dict(result)
    assert niceness["explain"] == min(19, niceness["sentiment-inference"] + 10)


@pytest.mark.slow
async def test_explanations_pause_while_plain_texts_are_answered(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = OnnxRuntime.run

    def slow(runtime: OnnxRuntime, batch: Batch) -> NDArray[np.float32]:
        time.sleep(0.02)
        return run(runtime, batch)

    monkeypatch.setattr(OnnxRuntime, "run", slow)
    tokenizer = Tokenizer.from_bundle(bundle)
    steps = 2  # the whole text, and the text without its words
    for busy in (True, False):
        source = {"sentiment": ExplainableModel(bundle, tokenizer)}
        explanations = ExplanationWorker(source, {True: lambda: True, False: lambda: False}[busy])
        result = await explanations.explain("sentiment", [ASK], ExplanationRequest(), time.monotonic() + 60)
        assert isinstance(result.outcomes[0], TextExplanation)
        assert not busy or result.explain_s > steps * 9 * 0.02
        await explanations.stop()


async def test_a_stopped_worker_refuses(bundle: Bundle) -> None:
    source = ExplainableModel(bundle, Tokenizer.from_bundle(bundle))
    explanations = ExplanationWorker({"sentiment": source}, lambda: False)
    await explanations.stop()
    with pytest.raises(NotReady):
        await explanations.explain("sentiment", [ASK], ExplanationRequest(), time.monotonic() + 60)
