"""Explanations of intents and replies over HTTP, with a real tiny bundle in this process."""

from __future__ import annotations

import io
import json
from collections.abc import Awaitable
from typing import Any

import httpx
import numpy as np
import pytest

from models.bundle import SHIPPED_INTENT, Bundle, load_bundle
from models.explain.attribution import METHODS
from models.explain.methods import SUPPORTED_METHODS, ExplainableTask
from models.prediction.intent_head import predict_intents
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch
from models.text.tokenizer import Tokenizer, Turn
from service.registry.heads import HeadRegistry
from service.telemetry.metrics import Metrics
from tests.support.explain_dialogues_app import (
    CANDIDATES,
    DIALOGUE,
    INTENT,
    PATIENCE,
    REPLIES,
    Explains,
    app_of,
    assert_words_are_of,
    results,
)
from tests.support.service_app import assert_problem

pytestmark = pytest.mark.anyio

TURNS = tuple(Turn(turn["speaker"], turn["text"]) for turn in DIALOGUE)  # type: ignore[arg-type]


@pytest.mark.slow
async def test_every_word_and_turn_of_a_dialogue_has_a_weight(explains: Explains) -> None:
    (result,) = results(await explains.intent({"turns": DIALOGUE, "id": "c-9"}, label_set="letters"))
    assert [turn["turn"] for turn in result["turns"]] == [0, 1, 2]
    assert_words_are_of(result["turns"], DIALOGUE)
    assert all(any(word["weight"] for word in turn["words"]) for turn in result["turns"])
    assert all(turn["weight"] for turn in result["turns"])
    assert (result["method"], result["signed"], result["turns_dropped"], result["id"]) == (
        "two_sided_occlusion",
        True,
        0,
        "c-9",
    )


async def test_the_explained_scores_are_the_served_scores(explains: Explains) -> None:
    inputs = ["aaaa", {"turns": DIALOGUE}, "股票上涨"]
    answer = await explains.client.post("/v1/intent", json={"inputs": inputs, "label_set": "letters"})
    for result, expected in zip(results(await explains.intent(inputs)), answer.json()["results"], strict=True):
        assert (result["intent"], result["out_of_scope"], result["tokens"]) == (
            expected["intent"],
            expected["out_of_scope"],
            expected["tokens"],
        )
        assert result["target"] == expected["ranking"][0]["intent"]
        assert result["confidence"] == pytest.approx(expected["confidence"], abs=1e-4)
        assert result["out_of_scope_score"] == pytest.approx(expected["out_of_scope_score"], abs=1e-4)
        assert len(result["turns"]) == expected["turns_used"]


async def test_occlusion_is_the_change_without_a_word_or_turn(explains: Explains, bundle: Bundle) -> None:
    turns = [*DIALOGUE[:2], {"speaker": "customer", "text": " bb 股 b"}]
    (result,) = results(await explains.intent({"turns": turns}, method="occlusion", target="a"))
    head, tokenizer = explains.registry.heads["letters"], Tokenizer.from_bundle(bundle)
    runtime = OnnxRuntime(bundle.graph)

    def confidence(hidden: set[int]) -> float:
        remaining = [index for index in range(tokens.length) if index not in hidden]
        kinds = np.asarray([tokens.token_types[remaining]])
        rows = runtime.run(Batch(np.asarray([tokens.ids[remaining]]), np.ones_like(kinds), kinds))
        return float(predict_intents(head, rows).confidences[0, head.labels.index("a")])

    tokens, _ = tokenizer.encode_dialogue(turns[-1]["text"], TURNS[:-1])
    pieces = tokenizer.token_strings(tokens)
    # The tiny tokenizer has a token per character: a word has its characters and the space before it.
    index = len(pieces) - 2
    whole = confidence(set())
    for turn in reversed(result["turns"]):
        gone: set[int] = set()
        for word in reversed(turn["words"]):
            expected = set()
            for character in reversed(word["text"]):
                expected.add(index)
                assert pieces[index] == character
                index -= 1
            if pieces[index] == "▁":
                expected.add(index)
                index -= 1
            assert word["weight"] == pytest.approx(whole - confidence(expected), abs=1e-5), word
            gone |= expected
        assert turn["weight"] == pytest.approx(whole - confidence(gone), abs=1e-5)
        while pieces[index] != "</s>" and pieces[index] != "▁" and index:
            index -= 1  # before the name of the speaker
        index -= 1


async def test_weights_explain_the_target(explains: Explains) -> None:
    by_label = [results(await explains.intent("ab cc", target=label))[0] for label in "abc"]
    assert [result["target"] for result in by_label] == list("abc")
    sums = np.sum([[word["weight"] for word in result["turns"][0]["words"]] for result in by_label], axis=0)
    np.testing.assert_allclose(sums, 0, atol=1e-6)
    assert {result["turns"][0]["weight"] for result in by_label} == {None}


def explain(explains: Explains, task: str, method: str) -> Awaitable[Any]:
    if task == "intent":
        return explains.intent({"turns": DIALOGUE}, method=method)
    return explains.reply(candidates=CANDIDATES, method=method)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "method"),
    [(task, method) for task in ("intent", "replies") for method in ("auto", *SUPPORTED_METHODS[task])],
)
async def test_every_supported_method_works(explains: Explains, task: str, method: str) -> None:
    (result,) = results(await explain(explains, task, method))
    assert result["method"] == ("two_sided_occlusion" if method == "auto" else method)
    assert result["signed"] is (method != "value_norm")
    assert all(turn["weight"] is not None for turn in result["turns"])


@pytest.mark.parametrize("task", ["intent", "replies"])
async def test_an_unfaithful_method_is_refused_with_the_supported_ones(
    explains: Explains, task: ExplainableTask
) -> None:
    for method in set(METHODS) - {*SUPPORTED_METHODS[task], "attention"}:
        answer = await explain(explains, task, method)
        assert_problem(answer, 422, "invalid_request", "/method")
        assert all(f"'{offered}'" in answer.json()["detail"] for offered in ("auto", *SUPPORTED_METHODS[task]))


async def test_a_dialogue_has_attention_maps(explains: Explains) -> None:
    options: dict[str, Any] = {"method": "attention", "layers": [1], "heads": [0, 2]}
    (result,) = results(await explains.intent({"turns": DIALOGUE}, **options))
    (two,) = results(await explains.reply(candidates=CANDIDATES, method="attention", reduce="rollout"))
    assert np.asarray(result["attention"]["weights"]).shape == (1, 2, result["tokens"], result["tokens"])
    assert np.asarray(two["attention"]["weights"]).shape == (1, 1, result["tokens"], result["tokens"])
    for turn in result["turns"]:
        # A token that two words share is part of both weights.
        assert 0 < turn["weight"] <= sum(word["weight"] for word in turn["words"]) + 1e-5
    packed = await explains.intent({"turns": DIALOGUE}, {"Accept": "application/x-npz"}, **options)
    file = np.load(io.BytesIO(packed.content), allow_pickle=False)
    assert json.loads(str(file["answer"]))["label_set"] == "letters"
    np.testing.assert_allclose(file["weights_0"], result["attention"]["weights"], atol=1e-6)


async def test_dropped_turns_are_counted(explains: Explains) -> None:
    many = [{"speaker": "agent", "text": f"x{index} " * 8} for index in range(20)] + [DIALOGUE[2]]
    (result,) = results(await explains.intent({"turns": many}, PATIENCE))
    assert result["turns_dropped"] + len(result["turns"]) == 21
    assert [turn["turn"] for turn in result["turns"]] == list(range(result["turns_dropped"], 21))
    assert_words_are_of(result["turns"], many)
    (two,) = results(
        await explains.intent({"turns": [DIALOGUE[0], {"speaker": "customer", "text": "ab " * 2000}]}, PATIENCE)
    )
    assert (two["truncated"], two["turns_dropped"], [turn["turn"] for turn in two["turns"]]) == (True, 1, [1])
    assert two["turns"][0]["words"][-1]["end"] <= two["turns"][0]["read_span"]["end"] < 6000


async def test_the_target_reply_is_explained_and_by_default_the_best(explains: Explains) -> None:
    plain = await explains.client.post("/v1/replies", json={"turns": DIALOGUE, "candidates": CANDIDATES})
    best = plain.json()["results"][0]
    by_index = {result["index"]: result["score"] for result in plain.json()["results"]}
    (result,) = results(await explains.reply(candidates=CANDIDATES))
    assert (result["target"]["index"], result["target"]["text"]) == (best["index"], best["text"])
    assert result["target"]["score"] == pytest.approx(best["score"], abs=1e-4)
    assert_words_are_of(result["turns"], DIALOGUE)
    for index, text in enumerate(CANDIDATES):
        (two,) = results(await explains.reply(candidates=CANDIDATES, target=index))
        assert two["target"] == {"index": index, "text": text, "score": pytest.approx(by_index[index], abs=1e-4)}


async def test_a_reply_of_a_set_is_explained_like_a_candidate(explains: Explains) -> None:
    (item,) = results(await explains.reply(reply_set="support", target=3))
    (two,) = results(await explains.reply(candidates=["ddddd"]))
    assert item["target"] | {"index": 0} == two["target"] | {"score": pytest.approx(item["target"]["score"], abs=1e-4)}
    weights = [[word["weight"] for turn in result["turns"] for word in turn["words"]] for result in (item, two)]
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-4)
    (best,) = results(await explains.reply(reply_set="support"))
    assert best["target"]["text"] == explains.registry.reply_sets["support"].texts[best["target"]["index"]]


async def test_a_bad_item_does_not_affect_the_rest(explains: Explains) -> None:
    good, bad = (await explains.intent(["aa", {"text": " ", "id": "x"}])).json()["results"]
    assert good["turns"][0]["words"][0]["text"] == "aa"
    assert (bad["error"]["code"], bad["id"]) == ("empty_text", "x")
    assert_problem(await explains.intent([" "]), 422, "empty_text", "/inputs/0")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["x", "‰‰‰ ‰", "🙂", "<s>"])
async def test_texts_of_a_single_word_or_of_unknown_tokens_are_explained(explains: Explains, text: str) -> None:
    (result,) = results(await explains.intent({"turns": [DIALOGUE[0], {"speaker": "customer", "text": text}]}))
    assert "".join(word["text"] for word in result["turns"][1]["words"]) == text.replace(" ", "")


@pytest.mark.slow
async def test_the_shipped_model_rests_on_plausible_words(metrics: Metrics) -> None:
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
        options = {
            "turns": hotel,
            "candidates": ["Do you have a price range in mind?", "Goodbye."],
            "method": "shapley",
        }
        (result,) = results(await client.post(REPLIES, json=options, headers=PATIENCE))
        assert max(result["turns"][0]["words"], key=lambda word: float(word["weight"]))["text"] == "hotel"
