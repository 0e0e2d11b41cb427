"""Explanations of sentiment over HTTP, with a real tiny bundle in this process, and once with the shipped bundle."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import SHIPPED, Bundle, load_bundle
from models.explain import attention_maps as maps
from models.explain.methods import SUPPORTED_METHODS
from models.graph import weights as stored
from models.runtime.onnx import OnnxRuntime
from models.tasks import SENTIMENT
from models.text.encoding import Batch
from models.text.tokenizer import Tokenizer
from service.api.gateway import create_app
from service.errors import NotReady
from service.explanation.request import ExplanationRequest, InstanceFactory, TextExplanation
from service.explanation.worker import ExplainableModel, ExplanationWorker
from service.inference.cache import CachedPredictor
from service.inference.engine import Engine
from service.schemas.explain import MAX_EXPLAINED, MAX_MAP_NUMBERS, MAX_PACKED_NUMBERS, ExplainResponse
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes
from tests.support.service_app import JSON, Service, assert_problem
from tests.support.tiny_bundle import HEADS, LAYERS, tiny_bundle

pytestmark = pytest.mark.anyio

PATH = "/v1/explain/sentiment"
ASK: InstanceFactory = lambda explainer: explainer.text_instance("ab")  # noqa: E731
NEWS = "Shares of Acme plunge after profit warning"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))


@dataclass(frozen=True)
class Explains:
    client: httpx.AsyncClient
    explanations: ExplanationWorker
    engine: Engine

    async def ask(self, inputs: Any, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        return await self.client.post(PATH, json={"inputs": inputs, **more}, headers=headers)

    async def label(self, inputs: Any) -> str:
        answer = await self.client.post("/v1/sentiment", json={"inputs": inputs})
        return str(answer.json()["results"][0]["label"])


@pytest.fixture
async def explains(bundle: Bundle, metrics: Metrics) -> AsyncIterator[Explains]:
    async with serving(bundle, metrics) as running:
        yield running


@asynccontextmanager
async def serving(bundle: Bundle, metrics: Metrics) -> AsyncIterator[Explains]:
    task = metrics.task("sentiment")
    tokenizer = Tokenizer(bundle.tokenizer, bundle.max_tokens)
    engine = Engine(bundle, tokenizer, OnnxRuntime(bundle.graph), fakes.LIMITS, task)
    explanations = ExplanationWorker({"sentiment": ExplainableModel(bundle, tokenizer)}, lambda: engine.busy)
    app = create_app({"sentiment": CachedPredictor(engine, 0, task)}, Settings(), metrics, None, explanations)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        yield Explains(client, explanations, engine)


class Gate:
    """A gate that stops the thread of explanations at its next step, like a slow model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.entered, self.runs = threading.Event(), threading.Event(), 0
        run = OnnxRuntime.run

        def held(runtime: OnnxRuntime, batch: Batch) -> NDArray[np.float32]:
            if threading.current_thread().name.startswith("explain"):
                self.runs += 1
                self.entered.set()
                self.open.wait(60)
            return run(runtime, batch)

        monkeypatch.setattr(OnnxRuntime, "run", held)

    async def holds(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, 60)


def shown(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    ExplainResponse.model_validate_json(answer.content)
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


async def test_texts_are_explained_in_order(explains: Explains) -> None:
    inputs = ["ab cd", {"text": "公司利润增长 now", "entity": "公司", "id": "n-17"}]
    first, second = shown(await explains.ask(inputs))
    assert [(word["text"], word["start"], word["end"]) for word in first["words"]] == [("ab", 0, 2), ("cd", 3, 5)]
    assert (first["method"], first["signed"], first["id"], second["id"]) == ("two_sided_occlusion", True, None, "n-17")
    assert first["target"] == first["label"] == max(first["scores"], key=first["scores"].__getitem__)
    assert (first["truncated"], first["read_span"], "attention" in first) == (False, {"start": 0, "end": 5}, False)
    assert any(word["weight"] for word in first["words"])
    named = [word for word in second["words"] if word["is_entity"]]
    assert "".join(word["text"] for word in named) == "公司"
    assert {word["weight"] for word in named} == {0.0}


async def test_the_explained_label_and_scores_are_the_served_ones(explains: Explains) -> None:
    inputs = ["ab cd", "公司利润增长", "up " * 400, {"text": "A up B down", "entity": "B"}, "‰ ‰", "x"]
    answer = await explains.client.post("/v1/sentiment", json={"inputs": inputs})
    served = answer.json()["results"]
    for result, expected in zip(shown(await explains.ask(inputs)), served, strict=True):
        assert (result["label"], result["tokens"], result["truncated"]) == (
            expected["label"],
            expected["tokens"],
            expected["truncated"],
        )
        assert result["scores"] == pytest.approx(expected["scores"], abs=1e-5)


async def test_weights_explain_the_target(explains: Explains) -> None:
    by_label = {label: shown(await explains.ask("ab cd", target=label))[0] for label in SENTIMENT.labels}
    assert [result["target"] for result in by_label.values()] == list(by_label)
    assert len({result["label"] for result in by_label.values()}) == 1
    # Probabilities sum to 1, so the effects of a word on all labels sum to 0.
    sums = np.sum([[word["weight"] for word in result["words"]] for result in by_label.values()], axis=0)
    np.testing.assert_allclose(sums, 0, atol=1e-6)


@pytest.mark.parametrize("method", ["auto", *SUPPORTED_METHODS["sentiment"]])
async def test_every_supported_method_works(explains: Explains, method: str) -> None:
    (result,) = shown(await explains.ask("ab cd 利润", method=method))
    assert result["method"] == ("two_sided_occlusion" if method == "auto" else method)
    assert result["signed"] is (method != "value_norm")


@pytest.mark.parametrize(("heads", "which"), [("all", [0, 1, 2, 3]), ([3, 1], [3, 1]), (None, [0, 1, 2, 3])])
async def test_maps_are_of_the_requested_layers_and_heads(explains: Explains, heads: Any, which: list[int]) -> None:
    (result,) = shown(await explains.ask("ab 利润", method="attention", layers=[1, 0], heads=heads))
    attention = result["attention"]
    assert (attention["layers"], attention["heads"]) == ([1, 0], which)
    assert (attention["model_layers"], attention["model_heads"]) == (LAYERS, HEADS)
    assert attention["tokens"] == ["<s>", "▁", "a", "b", "▁", "利", "润", "</s>"]
    weights = np.asarray(attention["weights"])
    assert weights.shape == (2, len(which), 8, 8)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-3)
    assert result["signed"] is False
    assert 0 < sum(word["weight"] for word in result["words"]) < 1


async def maps_of(explains: Explains, inputs: Any, **more: Any) -> NDArray[np.float64]:
    (result,) = shown(await explains.ask(inputs, method="attention", **more))
    return np.asarray(result["attention"]["weights"])


async def test_maps_are_reduced_to_their_mean(explains: Explains) -> None:
    whole = await maps_of(explains, "ab 利润", layers=[0, 1], heads=[0, 2])
    mean = await maps_of(explains, "ab 利润", layers=[0, 1], heads=[0, 2], reduce="mean")
    assert mean.shape == (1, 1, 8, 8)
    np.testing.assert_allclose(mean[0, 0], whole.mean(axis=(0, 1)), atol=2e-4)


async def test_a_rollout_follows_attention_through_all_layers(explains: Explains) -> None:
    whole = (await maps_of(explains, "ab 利润", layers=[0, 1])).mean(axis=1)
    rolled = await maps_of(explains, "ab 利润", reduce="rollout")
    mixed = (whole + np.eye(8)) / 2
    np.testing.assert_allclose(rolled[0, 0], mixed[1] @ mixed[0], atol=5e-4)
    (result,) = shown(await explains.ask("ab 利润", method="attention", reduce="rollout"))
    assert result["attention"]["reduce"] == "rollout"
    assert (result["attention"]["layers"], result["attention"]["heads"]) == ([0, 1], [0, 1, 2, 3])
    assert 0 < sum(word["weight"] for word in result["words"]) < 1


async def test_a_map_of_the_longest_text_fits(explains: Explains) -> None:
    assert (await maps_of(explains, "a" * 3000, reduce="rollout")).shape == (1, 1, 512, 512)


async def test_a_file_of_arrays_has_the_same_maps(explains: Explains) -> None:
    options: dict[str, Any] = {"method": "attention", "layers": [1, 0], "heads": [2]}
    inputs = ["ab", {"text": " ", "id": "x"}, {"text": "利润 cd", "id": "y"}]
    answer = await explains.ask(inputs, {"Accept": "application/x-npz"}, **options)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-npz")
    file = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert sorted(file) == ["answer", "weights_0", "weights_2"]
    packed, plain = json.loads(str(file["answer"])), (await explains.ask(inputs, **options)).json()
    assert packed["results"][1]["error"]["code"] == "empty_text"
    for index in (0, 2):
        name = packed["results"][index]["attention"]["weights"]
        packed["results"][index]["attention"]["weights"] = plain["results"][index]["attention"]["weights"]
        np.testing.assert_allclose(file[name], plain["results"][index]["attention"]["weights"], atol=1e-6)
    assert packed["results"] == plain["results"]


async def test_a_file_of_arrays_may_be_larger_up_to_a_limit(explains: Explains) -> None:
    options: dict[str, Any] = {"method": "attention", "layers": [0, 1], "heads": "all"}
    accept = {"Accept": "application/x-npz"}
    assert_problem(await explains.ask("a" * 300, **options), 413, "explanation_too_large", "/inputs")
    assert (await explains.ask("a" * 300, accept, **options)).status_code == 200
    refused = await explains.ask("a" * 3000, accept, **(options | {"layers": [0, 1, 0]}))
    assert_problem(refused, 413, "explanation_too_large", "/inputs")
    assert f"over {MAX_PACKED_NUMBERS} numbers" in refused.json()["detail"]


async def test_without_maps_there_is_no_file_of_arrays(explains: Explains) -> None:
    shown(await explains.ask("ab", {"Accept": "application/x-npz"}))


@pytest.mark.parametrize("text", ["x", "‰‰‰ ‰", "🙂", "<s>"])
@pytest.mark.parametrize("method", SUPPORTED_METHODS["sentiment"])
async def test_texts_of_a_single_word_or_of_unknown_tokens_are_explained(
    explains: Explains, text: str, method: str
) -> None:
    (result,) = shown(await explains.ask(text, method=method))
    assert "".join(word["text"] for word in result["words"]) == text.replace(" ", "")


async def test_a_text_that_is_all_entity_has_weight_zero(explains: Explains) -> None:
    (result,) = shown(await explains.ask({"text": "Acme", "entity": "Acme"}))
    assert [(word["is_entity"], word["weight"]) for word in result["words"]] == [(True, 0.0)]


async def test_a_long_text_has_the_span_that_was_read(explains: Explains) -> None:
    (result,) = shown(await explains.ask(" ab" * 2000))
    assert result["truncated"] is True
    assert result["words"][-1]["end"] <= result["read_span"]["end"] < 6000
    assert result["tokens"] == 512


async def test_a_bad_item_does_not_affect_the_rest(explains: Explains) -> None:
    good, bad, nameless = (
        await explains.ask(["ab", {"text": " ", "id": "x"}, {"text": "a", "entity": "\u200b"}])
    ).json()["results"]
    assert good["words"][0]["text"] == "ab"
    assert (bad["error"]["code"], bad["id"]) == ("empty_text", "x")
    assert nameless["error"]["code"] == "invalid_request"


async def test_a_request_without_a_usable_text_is_refused(explains: Explains) -> None:
    assert_problem(await explains.ask([" "]), 422, "empty_text", "/inputs/0")
    assert_problem(await explains.ask({"text": "", "id": "x"}), 422, "empty_text", "/inputs/text")


@pytest.mark.parametrize(
    ("more", "pointer"),
    [
        ({"method": "rollout"}, "/method"),
        ({"method": 3}, "/method"),
        ({"target": "great"}, "/target"),
        ({"method": "attention"}, ""),
        ({"layers": [0]}, ""),
        ({"heads": "all"}, ""),
        ({"method": "attention", "layers": []}, "/layers"),
        ({"method": "attention", "layers": [-1]}, "/layers/0"),
        ({"method": "attention", "layers": [0, LAYERS]}, "/layers/1"),
        ({"method": "attention", "layers": [10**30]}, "/layers/0"),
        ({"method": "attention", "layers": [0.5]}, "/layers/0"),
        ({"method": "attention", "layers": "all"}, "/layers"),
        ({"method": "attention", "layers": [0], "heads": [HEADS]}, "/heads/0"),
        ({"method": "attention", "layers": [0], "heads": "some"}, "/heads"),
        ({"method": "attention", "layers": [0], "heads": 1}, "/heads"),
        ({"method": "attention", "layers": [0], "heads": []}, "/heads"),
        ({"reduce": "mean"}, ""),
        ({"method": "attention", "reduce": "mean"}, ""),
        ({"method": "attention", "reduce": "rollout", "layers": [0]}, ""),
        ({"method": "attention", "reduce": "rollout", "heads": "all"}, ""),
        ({"method": "attention", "reduce": "sum", "layers": [0]}, "/reduce"),
        ({"truncate": True}, "/truncate"),
        ({"inputs": []}, "/inputs"),
        ({"inputs": 3}, "/inputs"),
        ({"inputs": [{"text": "a", "entity": 3}]}, "/inputs/0/entity"),
    ],
)
async def test_bad_input_has_a_pointer(explains: Explains, more: dict[str, Any], pointer: str) -> None:
    assert_problem(await explains.client.post(PATH, json={"inputs": "ab", **more}), 422, "invalid_request", pointer)


async def test_a_graph_without_attention_nodes_is_explained_by_the_remaining_methods(
    explains: Explains, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "find_attention_nodes", lambda graph: iter(()))
    monkeypatch.setattr(stored, "find_attributes", lambda graph, operator, name: iter(()))
    for more in ({"method": "attention", "layers": [0]}, {"method": "value_norm"}, {"method": "integrated_gradients"}):
        assert_problem(await explains.ask("ab", **more), 422, "invalid_request", "/method")
    shown(await explains.ask("ab"))


async def test_malformed_bodies_are_refused(explains: Explains) -> None:
    for content, status, code in ((b"{", 400, "malformed_json"), (b"\xff", 400, "malformed_body")):
        assert_problem(await explains.client.post(PATH, content=content, headers=JSON), status, code)


@pytest.mark.parametrize(
    ("inputs", "more", "limit"),
    [
        (["a"] * (MAX_EXPLAINED + 1), {}, "at most 16"),
        (["a"] * 5, {"layers": [0]}, "at most 4"),
        ("a" * 300, {"layers": [0]}, f"over {MAX_MAP_NUMBERS} numbers"),
        (["a" * 200] * 4, {"layers": [0], "heads": [0, 1]}, "fewer"),
    ],
)
async def test_too_large_a_request_is_refused_with_the_limit(
    explains: Explains, inputs: Any, more: dict[str, Any], limit: str
) -> None:
    answer = await explains.ask(inputs, method="attention" if more else "auto", **more)
    assert_problem(answer, 413, "explanation_too_large", "/inputs")
    assert limit in answer.json()["detail"]


async def test_a_remote_model_has_no_explanations(service: Service) -> None:
    answer = await service.client.post(PATH, json={"inputs": "good"})
    assert_problem(answer, 404, "not_found")
    assert "no explanations" in answer.json()["detail"]


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
    tokenizer = Tokenizer(bundle.tokenizer, bundle.max_tokens)
    steps = 2  # the whole text, and the text without its words
    for busy in (True, False):
        source = {"sentiment": ExplainableModel(bundle, tokenizer)}
        explanations = ExplanationWorker(source, {True: lambda: True, False: lambda: False}[busy])
        result = await explanations.explain("sentiment", [ASK], ExplanationRequest(), time.monotonic() + 60)
        assert isinstance(result.outcomes[0], TextExplanation)
        assert not busy or result.explain_s > steps * 9 * 0.02
        await explanations.stop()


async def test_a_stopped_worker_refuses(bundle: Bundle) -> None:
    source = ExplainableModel(bundle, Tokenizer(bundle.tokenizer, bundle.max_tokens))
    explanations = ExplanationWorker({"sentiment": source}, lambda: False)
    await explanations.stop()
    with pytest.raises(NotReady):
        await explanations.explain("sentiment", [ASK], ExplanationRequest(), time.monotonic() + 60)


@pytest.mark.slow
async def test_the_shipped_model_rests_on_plausible_words(metrics: Metrics) -> None:
    async with serving(load_bundle(SHIPPED), metrics) as shipped:
        inputs = [NEWS, "公司利润大增，股价上涨", {"text": "Stock A soars while B plunges", "entity": "B"}]
        english, chinese, towards = shown(await shipped.ask(inputs, {"X-Request-Timeout-Ms": "60000"}))
        heaviest = max(english["words"], key=lambda word: word["weight"])
        assert (english["label"], heaviest["text"]) == ("negative", "plunge")
        assert NEWS[heaviest["start"] : heaviest["end"]] == "plunge"
        assert chinese["label"] == "positive"
        assert towards["label"] == await shipped.label(inputs[2])
        (looked,) = shown(await shipped.ask(NEWS, method="attention", layers=[7], heads=[0]))
        assert len(looked["attention"]["weights"][0][0]) == looked["tokens"]
        assert_problem(await shipped.ask(NEWS, method="attention", layers=[8]), 422, "invalid_request", "/layers/0")
