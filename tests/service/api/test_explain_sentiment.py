"""Explanations over HTTP, from a real tiny bundle in this process; what the shipped one says of a plain text."""

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
    explaining: ExplanationWorker
    engine: Engine

    async def ask(self, inputs: Any, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        return await self.client.post(PATH, json={"inputs": inputs, **more}, headers=headers)

    async def label(self, given: Any) -> str:
        answer = await self.client.post("/v1/sentiment", json={"inputs": given})
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
    explaining = ExplanationWorker({"sentiment": ExplainableModel(bundle, tokenizer)}, lambda: engine.busy)
    app = create_app({"sentiment": CachedPredictor(engine, 0, task)}, Settings(), metrics, None, explaining)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        yield Explains(client, explaining, engine)


class Gate:
    """Holds the thread of explanations in its next step, as a slow model would."""

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


async def test_the_label_and_scores_are_those_that_are_served(explains: Explains) -> None:
    inputs = ["ab cd", "公司利润增长", "up " * 400, {"text": "A up B down", "entity": "B"}, "‰ ‰", "x"]
    answer = await explains.client.post("/v1/sentiment", json={"inputs": inputs})
    served = answer.json()["results"]
    for one, own in zip(shown(await explains.ask(inputs)), served, strict=True):
        assert (one["label"], one["tokens"], one["truncated"]) == (own["label"], own["tokens"], own["truncated"])
        assert one["scores"] == pytest.approx(own["scores"], abs=1e-5)


async def test_a_target_turns_the_weights_to_it(explains: Explains) -> None:
    by_label = {label: shown(await explains.ask("ab cd", target=label))[0] for label in SENTIMENT.labels}
    assert [one["target"] for one in by_label.values()] == list(by_label)
    assert len({one["label"] for one in by_label.values()}) == 1
    # Probabilities sum to 1, so what a word gives to one label it takes from the others.
    sums = np.sum([[word["weight"] for word in one["words"]] for one in by_label.values()], axis=0)
    np.testing.assert_allclose(sums, 0, atol=1e-6)


@pytest.mark.parametrize("method", ["auto", *SUPPORTED_METHODS["sentiment"]])
async def test_every_method_that_is_offered_can_be_asked_for(explains: Explains, method: str) -> None:
    (one,) = shown(await explains.ask("ab cd 利润", method=method))
    assert one["method"] == ("two_sided_occlusion" if method == "auto" else method)
    assert one["signed"] is (method != "value_norm")


@pytest.mark.parametrize(("heads", "which"), [("all", [0, 1, 2, 3]), ([3, 1], [3, 1]), (None, [0, 1, 2, 3])])
async def test_attention_comes_back_for_the_layers_and_heads_asked_for(
    explains: Explains, heads: Any, which: list[int]
) -> None:
    (one,) = shown(await explains.ask("ab 利润", method="attention", layers=[1, 0], heads=heads))
    found = one["attention"]
    assert (found["layers"], found["heads"]) == ([1, 0], which)
    assert (found["model_layers"], found["model_heads"]) == (LAYERS, HEADS)
    assert found["tokens"] == ["<s>", "▁", "a", "b", "▁", "利", "润", "</s>"]
    weights = np.asarray(found["weights"])
    assert weights.shape == (2, len(which), 8, 8)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-3)
    assert one["signed"] is False
    assert 0 < sum(word["weight"] for word in one["words"]) < 1


async def maps_of(explains: Explains, inputs: Any, **more: Any) -> NDArray[np.float64]:
    (one,) = shown(await explains.ask(inputs, method="attention", **more))
    return np.asarray(one["attention"]["weights"])


async def test_maps_are_reduced_to_their_mean(explains: Explains) -> None:
    whole = await maps_of(explains, "ab 利润", layers=[0, 1], heads=[0, 2])
    mean = await maps_of(explains, "ab 利润", layers=[0, 1], heads=[0, 2], reduce="mean")
    assert mean.shape == (1, 1, 8, 8)
    np.testing.assert_allclose(mean[0, 0], whole.mean(axis=(0, 1)), atol=2e-4)


async def test_maps_are_followed_through_all_layers(explains: Explains) -> None:
    whole = (await maps_of(explains, "ab 利润", layers=[0, 1])).mean(axis=1)
    rolled = await maps_of(explains, "ab 利润", reduce="rollout")
    mixed = (whole + np.eye(8)) / 2
    np.testing.assert_allclose(rolled[0, 0], mixed[1] @ mixed[0], atol=5e-4)
    (one,) = shown(await explains.ask("ab 利润", method="attention", reduce="rollout"))
    assert one["attention"]["reduce"] == "rollout"
    assert (one["attention"]["layers"], one["attention"]["heads"]) == ([0, 1], [0, 1, 2, 3])
    assert 0 < sum(word["weight"] for word in one["words"]) < 1


async def test_one_map_of_the_longest_text_is_shown(explains: Explains) -> None:
    assert (await maps_of(explains, "a" * 3000, reduce="rollout")).shape == (1, 1, 512, 512)


async def test_maps_come_as_a_file_of_arrays_that_says_the_same(explains: Explains) -> None:
    asked: dict[str, Any] = {"method": "attention", "layers": [1, 0], "heads": [2]}
    inputs = ["ab", {"text": " ", "id": "x"}, {"text": "利润 cd", "id": "y"}]
    answer = await explains.ask(inputs, {"Accept": "application/x-npz"}, **asked)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-npz")
    file = np.load(io.BytesIO(answer.content), allow_pickle=False)
    assert sorted(file) == ["answer", "weights_0", "weights_2"]
    told, plain = json.loads(str(file["answer"])), (await explains.ask(inputs, **asked)).json()
    assert told["results"][1]["error"]["code"] == "empty_text"
    for number in (0, 2):
        name = told["results"][number]["attention"]["weights"]
        told["results"][number]["attention"]["weights"] = plain["results"][number]["attention"]["weights"]
        np.testing.assert_allclose(file[name], plain["results"][number]["attention"]["weights"], atol=1e-6)
    assert told["results"] == plain["results"]


async def test_a_file_of_arrays_may_be_larger_and_has_its_limit(explains: Explains) -> None:
    asked: dict[str, Any] = {"method": "attention", "layers": [0, 1], "heads": "all"}
    accept = {"Accept": "application/x-npz"}
    assert_problem(await explains.ask("a" * 300, **asked), 413, "explanation_too_large", "/inputs")
    assert (await explains.ask("a" * 300, accept, **asked)).status_code == 200
    refused = await explains.ask("a" * 3000, accept, **(asked | {"layers": [0, 1, 0]}))
    assert_problem(refused, 413, "explanation_too_large", "/inputs")
    assert f"over {MAX_PACKED_NUMBERS} numbers" in refused.json()["detail"]


async def test_without_maps_there_is_no_file_of_arrays(explains: Explains) -> None:
    shown(await explains.ask("ab", {"Accept": "application/x-npz"}))


@pytest.mark.parametrize("text", ["x", "‰‰‰ ‰", "🙂", "<s>"])
@pytest.mark.parametrize("method", SUPPORTED_METHODS["sentiment"])
async def test_texts_of_one_word_or_of_nothing_known_are_explained(explains: Explains, text: str, method: str) -> None:
    (one,) = shown(await explains.ask(text, method=method))
    assert "".join(word["text"] for word in one["words"]) == text.replace(" ", "")


async def test_a_text_that_is_all_entity_has_nothing_to_weigh(explains: Explains) -> None:
    (one,) = shown(await explains.ask({"text": "Acme", "entity": "Acme"}))
    assert [(word["is_entity"], word["weight"]) for word in one["words"]] == [(True, 0.0)]


async def test_an_over_long_text_says_what_was_covered(explains: Explains) -> None:
    (one,) = shown(await explains.ask(" ab" * 2000))
    assert one["truncated"] is True
    assert one["words"][-1]["end"] <= one["read_span"]["end"] < 6000
    assert one["tokens"] == 512


async def test_one_bad_item_leaves_its_neighbours_unharmed(explains: Explains) -> None:
    good, bad, nameless = (
        await explains.ask(["ab", {"text": " ", "id": "x"}, {"text": "a", "entity": "\u200b"}])
    ).json()["results"]
    assert good["words"][0]["text"] == "ab"
    assert (bad["error"]["code"], bad["id"]) == ("empty_text", "x")
    assert nameless["error"]["code"] == "invalid_request"


async def test_a_request_of_nothing_that_can_be_explained_is_refused(explains: Explains) -> None:
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
async def test_bad_input_is_named(explains: Explains, more: dict[str, Any], pointer: str) -> None:
    assert_problem(await explains.client.post(PATH, json={"inputs": "ab", **more}), 422, "invalid_request", pointer)


async def test_a_graph_that_shows_no_attention_is_explained_without(
    explains: Explains, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "find_attention_nodes", lambda graph: iter(()))
    monkeypatch.setattr(stored, "find_attributes", lambda graph, operator, name: iter(()))
    for more in ({"method": "attention", "layers": [0]}, {"method": "value_norm"}, {"method": "integrated_gradients"}):
        assert_problem(await explains.ask("ab", **more), 422, "invalid_request", "/method")
    shown(await explains.ask("ab"))


async def test_malformed_bodies_are_refused_as_everywhere(explains: Explains) -> None:
    for content, status, code in ((b"{", 400, "malformed_json"), (b"\xff", 400, "malformed_body")):
        assert_problem(await explains.client.post(PATH, content=content, headers=JSON), status, code)


@pytest.mark.parametrize(
    ("inputs", "more", "limit"),
    [
        (["a"] * (MAX_EXPLAINED + 1), {}, "At most 16"),
        (["a"] * 5, {"layers": [0]}, "at most 4"),
        ("a" * 300, {"layers": [0]}, f"over {MAX_MAP_NUMBERS} numbers"),
        (["a" * 200] * 4, {"layers": [0], "heads": [0, 1]}, "fewer"),
    ],
)
async def test_too_much_is_refused_with_the_limit(
    explains: Explains, inputs: Any, more: dict[str, Any], limit: str
) -> None:
    answer = await explains.ask(inputs, method="attention" if more else "auto", **more)
    assert_problem(answer, 413, "explanation_too_large", "/inputs")
    assert limit in answer.json()["detail"]


async def test_where_the_model_is_elsewhere_nothing_is_explained(service: Service) -> None:
    answer = await service.client.post(PATH, json={"inputs": "good"})
    assert_problem(answer, 404, "not_found")
    assert "explains nothing" in answer.json()["detail"]


async def test_nothing_is_loaded_before_the_first_explanation(
    explains: Explains, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_plain_texts_are_answered_while_an_explanation_is_under_way(
    explains: Explains, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    asked = asyncio.create_task(explains.ask("ab cd"))
    await gate.holds()
    assert await explains.label("ab")
    gate.open.set()
    shown(await asked)


async def test_a_few_wait_and_more_are_refused(explains: Explains, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(monkeypatch)
    asked = [asyncio.create_task(explains.ask("ab cd")) for _ in range(5)]
    await gate.holds()
    assert_problem(await explains.ask("ab cd"), 429, "overloaded")
    gate.open.set()
    for answer in await asyncio.gather(*asked):
        shown(answer)
    shown(await explains.ask("ab cd"))


async def test_who_waits_too_long_gets_504_and_frees_the_place(
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


async def test_what_was_explained_in_time_stands(explains: Explains, monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_the_work_for_a_caller_who_went_away_ends_at_its_next_step(
    explains: Explains, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    asked = asyncio.create_task(explains.ask(["ab cd ef"] * 16))
    await gate.holds()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    gate.open.set()
    runs = gate.runs
    shown(await explains.ask("ab"))
    assert gate.runs <= runs + 4


async def test_a_model_that_fails_on_a_text_is_that_texts_error(
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
    assert [one["error"]["code"] for one in (bad, nan)] == ["inference_failed"] * 2
    assert "secret" not in str(bad)


async def test_its_thread_gives_way_to_all_others(explains: Explains, monkeypatch: pytest.MonkeyPatch) -> None:
    run, found = OnnxRuntime.run, set()

    def noting(runtime: OnnxRuntime, batch: Batch) -> NDArray[np.float32]:
        thread = threading.current_thread().name.partition("_")[0]
        found.add((thread, os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        return run(runtime, batch)

    monkeypatch.setattr(OnnxRuntime, "run", noting)
    await explains.label("ab")
    shown(await explains.ask("ab"))
    niceness = dict(found)
    assert niceness["explain"] == min(19, niceness["sentiment-inference"] + 10)


async def test_it_pauses_while_plain_texts_are_answered(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    run = OnnxRuntime.run

    def slow(runtime: OnnxRuntime, batch: Batch) -> NDArray[np.float32]:
        time.sleep(0.02)
        return run(runtime, batch)

    monkeypatch.setattr(OnnxRuntime, "run", slow)
    tokenizer = Tokenizer(bundle.tokenizer, bundle.max_tokens)
    steps = 2  # the text itself, and what is left of it
    for busy in (True, False):
        source = {"sentiment": ExplainableModel(bundle, tokenizer)}
        explaining = ExplanationWorker(source, {True: lambda: True, False: lambda: False}[busy])
        found = await explaining.explain("sentiment", [ASK], ExplanationRequest(), time.monotonic() + 60)
        assert isinstance(found.outcomes[0], TextExplanation)
        assert not busy or found.explain_s > steps * 9 * 0.02
        await explaining.stop()


async def test_once_stopped_it_refuses(bundle: Bundle) -> None:
    source = ExplainableModel(bundle, Tokenizer(bundle.tokenizer, bundle.max_tokens))
    explaining = ExplanationWorker({"sentiment": source}, lambda: False)
    await explaining.stop()
    with pytest.raises(NotReady):
        await explaining.explain("sentiment", [ASK], ExplanationRequest(), time.monotonic() + 60)


async def test_the_shipped_model_rests_on_the_words_anyone_would_name(metrics: Metrics) -> None:
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
