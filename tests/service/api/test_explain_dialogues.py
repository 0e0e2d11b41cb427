"""Intents and replies explained over HTTP, from a real tiny bundle in this process."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.bundle import SHIPPED_INTENT, Bundle, load_bundle
from models.explain.attribution import METHODS
from models.explain.methods import SUPPORTED_METHODS, ExplainableTask
from models.prediction.intent_head import predict_intents
from models.prediction.reply_ranker import ReplySet, save_replies
from models.runtime.offline import open_text_encoder
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch
from models.text.tokenizer import Tokenizer, Turn
from service.api.gateway import create_app
from service.explanation.worker import ExplainableModel, ExplanationWorker
from service.inference.cache import CachedPredictor
from service.inference.engine import Engine
from service.registry.heads import HeadRegistry
from service.schemas.explain import MAX_COMPARED, MAX_EXPLAINED, ExplainIntentResponse, ExplainRepliesResponse
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes
from tests.support.service_app import JSON, assert_problem
from tests.support.tiny_bundle import LAYERS, tiny_intent_bundle

pytestmark = pytest.mark.anyio

INTENT, REPLIES = "/v1/explain/intent", "/v1/explain/replies"
PATIENCE = {"X-Request-Timeout-Ms": "60000"}
DIALOGUE = [
    {"speaker": "customer", "text": "  aa 利润"},
    {"speaker": "agent", "text": "c?"},
    {"speaker": "customer", "text": "bb 👍🏽 b "},
]
TURNS = tuple(Turn(one["speaker"], one["text"]) for one in DIALOGUE)  # type: ignore[arg-type]
CANDIDATES = ["aaaa", "bbbb", "1234"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_intent_bundle(tmp_path_factory.mktemp("bundle")))


@dataclass(frozen=True)
class Explains:
    client: httpx.AsyncClient
    shelf: HeadRegistry

    async def intent(self, inputs: Any, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        return await self.client.post(INTENT, json={"inputs": inputs, **more}, headers=headers)

    async def reply(self, **body: Any) -> httpx.Response:
        return await self.client.post(REPLIES, json={"turns": DIALOGUE, **body})


def app_of(bundle: Bundle, shelf: HeadRegistry, metrics: Metrics, explains: bool) -> Any:
    task = metrics.task("intent")
    tokenizer = Tokenizer(bundle.tokenizer, bundle.max_tokens)
    engine = Engine(bundle, tokenizer, OnnxRuntime(bundle.graph), fakes.LIMITS, task)
    explaining = (
        ExplanationWorker({"intent": ExplainableModel(bundle, tokenizer)}, lambda: engine.busy) if explains else None
    )
    labels = "letters" if "letters" in shelf.heads else "banking77"
    return create_app(
        {"intent": CachedPredictor(engine, 0, task)}, Settings(label_set=labels), metrics, shelf, explaining
    )


@pytest.fixture
async def explains(bundle: Bundle, tmp_path: Path, metrics: Metrics) -> AsyncIterator[Explains]:
    ranker, texts = HeadRegistry(bundle, None).ranker, tuple(letter * 5 for letter in "abcdefg" * 20)
    placed = ranker.project_replies(open_text_encoder(bundle).encode_texts(texts))
    save_replies(ReplySet("support", bundle.encoder_digest, texts, placed), tmp_path / "support.replies.safetensors")
    shelf = HeadRegistry(bundle, tmp_path)
    app = app_of(bundle, shelf, metrics, explains=True)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        yield Explains(client, shelf)


def results(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    kind = ExplainIntentResponse if "label_set" in answer.json() else ExplainRepliesResponse
    kind.model_validate_json(answer.content)
    found: list[dict[str, Any]] = answer.json()["results"]
    return found


def assert_words_are_of(turns: list[dict[str, Any]], sent: list[dict[str, str]]) -> None:
    for turn in turns:
        text = sent[turn["turn"]]["text"]
        assert [text[word["start"] : word["end"]] for word in turn["words"]] == [w["text"] for w in turn["words"]]
        assert "".join(word["text"] for word in turn["words"]) == "".join(text.split())


async def test_words_and_turns_of_a_dialogue_are_weighed(explains: Explains) -> None:
    (one,) = results(await explains.intent({"turns": DIALOGUE, "id": "c-9"}, label_set="letters"))
    assert [turn["turn"] for turn in one["turns"]] == [0, 1, 2]
    assert_words_are_of(one["turns"], DIALOGUE)
    assert all(any(word["weight"] for word in turn["words"]) for turn in one["turns"])
    assert all(turn["weight"] for turn in one["turns"])
    assert (one["method"], one["signed"], one["turns_dropped"], one["id"]) == ("two_sided_occlusion", True, 0, "c-9")


async def test_what_is_explained_is_what_is_served(explains: Explains) -> None:
    inputs = ["aaaa", {"turns": DIALOGUE}, "股票上涨"]
    answer = await explains.client.post("/v1/intent", json={"inputs": inputs, "label_set": "letters"})
    for one, own in zip(results(await explains.intent(inputs)), answer.json()["results"], strict=True):
        assert (one["intent"], one["out_of_scope"], one["tokens"]) == (
            own["intent"],
            own["out_of_scope"],
            own["tokens"],
        )
        assert one["target"] == own["ranking"][0]["intent"]
        assert one["confidence"] == pytest.approx(own["confidence"], abs=1e-4)
        assert one["out_of_scope_score"] == pytest.approx(own["out_of_scope_score"], abs=1e-4)
        assert len(one["turns"]) == own["turns_used"]


async def test_occlusion_is_what_taking_each_word_and_turn_away_by_hand_changes(
    explains: Explains, bundle: Bundle
) -> None:
    said = [*DIALOGUE[:2], {"speaker": "customer", "text": " bb 股 b"}]
    (one,) = results(await explains.intent({"turns": said}, method="occlusion", target="a"))
    head, tokenizer = explains.shelf.heads["letters"], Tokenizer(bundle.tokenizer, bundle.max_tokens)
    runtime = OnnxRuntime(bundle.graph)

    def confidence(hidden: set[int]) -> float:
        left = [place for place in range(tokens.length) if place not in hidden]
        kinds = np.asarray([tokens.token_types[left]])
        rows = runtime.run(Batch(np.asarray([tokens.ids[left]]), np.ones_like(kinds), kinds))
        return float(predict_intents(head, rows).confidences[0, head.labels.index("a")])

    tokens, _ = tokenizer.encode_dialogue(said[-1]["text"], TURNS[:-1])
    pieces = tokenizer.token_strings(tokens)
    # The tiny tokenizer has a piece a character: the last of each word's are its own, and the space before it.
    place = len(pieces) - 2
    whole = confidence(set())
    for turn in reversed(one["turns"]):
        gone: set[int] = set()
        for word in reversed(turn["words"]):
            own = set()
            for character in reversed(word["text"]):
                own.add(place)
                assert pieces[place] == character
                place -= 1
            if pieces[place] == "▁":
                own.add(place)
                place -= 1
            assert word["weight"] == pytest.approx(whole - confidence(own), abs=1e-5), word
            gone |= own
        assert turn["weight"] == pytest.approx(whole - confidence(gone), abs=1e-5)
        while pieces[place] != "</s>" and pieces[place] != "▁" and place:
            place -= 1  # over the speaker's name
        place -= 1


async def test_a_target_turns_the_weights_to_it(explains: Explains) -> None:
    by_label = [results(await explains.intent("ab cc", target=label))[0] for label in "abc"]
    assert [one["target"] for one in by_label] == list("abc")
    sums = np.sum([[word["weight"] for word in one["turns"][0]["words"]] for one in by_label], axis=0)
    np.testing.assert_allclose(sums, 0, atol=1e-6)
    assert {one["turns"][0]["weight"] for one in by_label} == {None}


def asked(explains: Explains, task: str, method: str) -> Awaitable[Any]:
    if task == "intent":
        return explains.intent({"turns": DIALOGUE}, method=method)
    return explains.reply(candidates=CANDIDATES, method=method)


@pytest.mark.parametrize(
    ("task", "method"),
    [(task, method) for task in ("intent", "replies") for method in ("auto", *SUPPORTED_METHODS[task])],
)
async def test_every_method_that_is_offered_can_be_asked_for(explains: Explains, task: str, method: str) -> None:
    (found,) = results(await asked(explains, task, method))
    assert found["method"] == ("two_sided_occlusion" if method == "auto" else method)
    assert found["signed"] is (method != "value_norm")
    assert all(turn["weight"] is not None for turn in found["turns"])


@pytest.mark.parametrize("task", ["intent", "replies"])
async def test_a_method_that_was_measured_not_to_be_worth_it_is_refused_naming_the_others(
    explains: Explains, task: ExplainableTask
) -> None:
    for method in set(METHODS) - {*SUPPORTED_METHODS[task], "attention"}:
        answer = await asked(explains, task, method)
        assert_problem(answer, 422, "invalid_request", "/method")
        assert all(f"'{offered}'" in answer.json()["detail"] for offered in ("auto", *SUPPORTED_METHODS[task]))


async def test_attention_of_a_dialogue_is_shown(explains: Explains) -> None:
    asked: dict[str, Any] = {"method": "attention", "layers": [1], "heads": [0, 2]}
    (one,) = results(await explains.intent({"turns": DIALOGUE}, **asked))
    (two,) = results(await explains.reply(candidates=CANDIDATES, method="attention", reduce="rollout"))
    assert np.asarray(one["attention"]["weights"]).shape == (1, 2, one["tokens"], one["tokens"])
    assert np.asarray(two["attention"]["weights"]).shape == (1, 1, one["tokens"], one["tokens"])
    for turn in one["turns"]:
        # A token that two words share is in both of their weights.
        assert 0 < turn["weight"] <= sum(word["weight"] for word in turn["words"]) + 1e-5
    packed = await explains.intent({"turns": DIALOGUE}, {"Accept": "application/x-npz"}, **asked)
    file = np.load(io.BytesIO(packed.content), allow_pickle=False)
    assert json.loads(str(file["answer"]))["label_set"] == "letters"
    np.testing.assert_allclose(file["weights_0"], one["attention"]["weights"], atol=1e-6)


async def test_turns_that_did_not_fit_are_counted(explains: Explains) -> None:
    many = [{"speaker": "agent", "text": f"x{number} " * 8} for number in range(20)] + [DIALOGUE[2]]
    (one,) = results(await explains.intent({"turns": many}, PATIENCE))
    assert one["turns_dropped"] + len(one["turns"]) == 21
    assert [turn["turn"] for turn in one["turns"]] == list(range(one["turns_dropped"], 21))
    assert_words_are_of(one["turns"], many)
    (two,) = results(
        await explains.intent({"turns": [DIALOGUE[0], {"speaker": "customer", "text": "ab " * 2000}]}, PATIENCE)
    )
    assert (two["truncated"], two["turns_dropped"], [turn["turn"] for turn in two["turns"]]) == (True, 1, [1])
    assert two["turns"][0]["words"][-1]["end"] <= two["turns"][0]["read_span"]["end"] < 6000


async def test_the_best_reply_is_explained_or_the_one_asked_about(explains: Explains) -> None:
    plain = await explains.client.post("/v1/replies", json={"turns": DIALOGUE, "candidates": CANDIDATES})
    best = plain.json()["results"][0]
    by_index = {one["index"]: one["score"] for one in plain.json()["results"]}
    (one,) = results(await explains.reply(candidates=CANDIDATES))
    assert (one["target"]["index"], one["target"]["text"]) == (best["index"], best["text"])
    assert one["target"]["score"] == pytest.approx(best["score"], abs=1e-4)
    assert_words_are_of(one["turns"], DIALOGUE)
    for index, text in enumerate(CANDIDATES):
        (two,) = results(await explains.reply(candidates=CANDIDATES, target=index))
        assert two["target"] == {"index": index, "text": text, "score": pytest.approx(by_index[index], abs=1e-4)}


async def test_a_reply_of_a_set_is_explained_as_it_is_when_sent_along(explains: Explains) -> None:
    (one,) = results(await explains.reply(reply_set="support", target=3))
    (two,) = results(await explains.reply(candidates=["ddddd"]))
    assert one["target"] | {"index": 0} == two["target"] | {"score": pytest.approx(one["target"]["score"], abs=1e-4)}
    weights = [[word["weight"] for turn in found["turns"] for word in turn["words"]] for found in (one, two)]
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-4)
    (best,) = results(await explains.reply(reply_set="support"))
    assert best["target"]["text"] == explains.shelf.reply_sets["support"].texts[best["target"]["index"]]


async def test_one_bad_item_leaves_its_neighbours_unharmed(explains: Explains) -> None:
    good, bad = (await explains.intent(["aa", {"text": " ", "id": "x"}])).json()["results"]
    assert good["turns"][0]["words"][0]["text"] == "aa"
    assert (bad["error"]["code"], bad["id"]) == ("empty_text", "x")
    assert_problem(await explains.intent([" "]), 422, "empty_text", "/inputs/0")


@pytest.mark.parametrize("text", ["x", "‰‰‰ ‰", "🙂", "<s>"])
async def test_texts_of_one_word_or_of_nothing_known_are_explained(explains: Explains, text: str) -> None:
    (one,) = results(await explains.intent({"turns": [DIALOGUE[0], {"speaker": "customer", "text": text}]}))
    assert "".join(word["text"] for word in one["turns"][1]["words"]) == text.replace(" ", "")


@pytest.mark.parametrize(
    ("path", "more", "pointer"),
    [
        (INTENT, {"target": "nope"}, "/target"),
        (INTENT, {"target": 3}, "/target"),
        (INTENT, {"method": "rollout"}, "/method"),
        (INTENT, {"method": "attention", "layers": [LAYERS]}, "/layers/0"),
        (INTENT, {"inputs": []}, "/inputs"),
        (INTENT, {"inputs": {"turns": [DIALOGUE[1]]}}, "/inputs"),
        (INTENT, {"top_k": 3}, "/top_k"),
        (REPLIES, {"target": 3}, "/target"),
        (REPLIES, {"target": -1}, "/target"),
        (REPLIES, {"target": "aaaa"}, "/target"),
        (REPLIES, {"reply_set": "support"}, ""),
        (REPLIES, {"candidates": ["a", "a"]}, ""),
        (REPLIES, {"candidates": []}, "/candidates"),
        (REPLIES, {"turns": [DIALOGUE[1]]}, ""),
        (REPLIES, {"method": "attention", "layers": [0], "heads": [9]}, "/heads/0"),
    ],
)
async def test_bad_input_is_named(explains: Explains, path: str, more: dict[str, Any], pointer: str) -> None:
    body = {"inputs": "ab"} if path == INTENT else {"turns": DIALOGUE, "candidates": CANDIDATES}
    assert_problem(await explains.client.post(path, json=body | more), 422, "invalid_request", pointer)


async def test_what_is_not_there_is_named(explains: Explains) -> None:
    assert_problem(await explains.intent("ab", label_set="nope"), 404, "not_found", "/label_set")
    assert_problem(await explains.reply(reply_set="nope"), 404, "not_found", "/reply_set")


async def test_too_much_is_refused_with_the_limit(explains: Explains) -> None:
    assert_problem(await explains.intent(["a"] * (MAX_EXPLAINED + 1)), 413, "explanation_too_large", "/inputs")
    many = [f"a{number}" for number in range(MAX_COMPARED + 1)]
    refused = await explains.reply(candidates=many)
    assert_problem(refused, 413, "explanation_too_large", "/candidates")
    assert str(MAX_COMPARED) in refused.json()["detail"]
    assert results(await explains.reply(candidates=many, target=MAX_COMPARED))[0]["target"]["index"] == MAX_COMPARED
    long = [{"speaker": "customer", "text": "a" * 3000}]
    answer = await explains.reply(turns=long, candidates=["a"], method="attention", layers=[0, 1] * 9)
    assert_problem(answer, 413, "explanation_too_large", "/turns")


async def test_malformed_bodies_are_refused_as_everywhere(explains: Explains) -> None:
    for path in (INTENT, REPLIES):
        for content, status, code in ((b"{", 400, "malformed_json"), (b"\xff", 400, "malformed_body")):
            assert_problem(await explains.client.post(path, content=content, headers=JSON), status, code)


async def test_where_the_model_is_elsewhere_nothing_is_explained(bundle: Bundle, metrics: Metrics) -> None:
    app = app_of(bundle, HeadRegistry(bundle, None), metrics, explains=False)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        assert_problem(await client.post(INTENT, json={"inputs": "ab"}), 404, "not_found")
        body = {"turns": DIALOGUE, "candidates": ["a"]}
        assert_problem(await client.post(REPLIES, json=body), 404, "not_found")


async def test_the_shipped_model_rests_on_the_words_anyone_would_name(metrics: Metrics) -> None:
    bundle = load_bundle(SHIPPED_INTENT)
    app = app_of(bundle, HeadRegistry(bundle, None), metrics, explains=True)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        turns = [
            {"speaker": "customer", "text": "I lost my card yesterday"},
            {"speaker": "agent", "text": "I am sorry. What can I do?"},
            {"speaker": "customer", "text": "please order me another one"},
        ]
        body = {"inputs": ["where is my card?", {"turns": turns}], "label_set": "banking77"}
        where, lost = results(await client.post(INTENT, json=body, headers=PATIENCE))
        *_, second, first = sorted(where["turns"][0]["words"], key=lambda word: float(word["weight"]))
        assert (where["target"], {first["text"], second["text"]}) == ("card_arrival", {"where", "card"})
        assert_words_are_of(lost["turns"], turns)
        hotel = [{"speaker": "customer", "text": "I need a hotel in the north of the city"}]
        asked = {"turns": hotel, "candidates": ["Do you have a price range in mind?", "Goodbye."], "method": "shapley"}
        (one,) = results(await client.post(REPLIES, json=asked, headers=PATIENCE))
        assert max(one["turns"][0]["words"], key=lambda word: float(word["weight"]))["text"] == "hotel"
