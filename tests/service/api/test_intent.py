"""Intents over HTTP, with a real tiny bundle in this process."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from models.prediction.intent_head import save_head
from models.runtime.offline import open_text_encoder
from service.schemas.intent import IntentResponse
from tests.support.intent_app import AGENT, CUSTOMER, Intents, turn
from tests.support.service_app import JSON, assert_problem
from tests.support.tiny_bundle import tiny_head

pytestmark = pytest.mark.anyio


async def test_texts_and_dialogues_get_intents_in_order(intents: Intents) -> None:
    dialogue = {"id": "c-9", "turns": [turn(CUSTOMER, "hello"), turn(AGENT, "yes?"), turn(CUSTOMER, "bbbbbb")]}
    answer = await intents.intent(["aaaaaa", dialogue, {"text": "cccc", "id": "c-10"}], top_k=2)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    IntentResponse.model_validate_json(answer.content)
    assert (body["model"], body["label_set"]) == ("intent", "letters")
    first, second, third = body["results"]
    assert [result["ranking"][0]["intent"] for result in (first, third)] == ["a", "c"]
    assert [result["id"] for result in body["results"]] == [None, "c-9", "c-10"]
    assert (second["turns_used"], second["turns_dropped"]) == (3, 0)
    assert (first["turns_used"], first["truncated"]) == (1, False)
    for result in body["results"]:
        assert len(result["ranking"]) == 2
        assert result["confidence"] == result["ranking"][0]["confidence"] >= result["ranking"][1]["confidence"]
        assert result["intent"] == (None if result["out_of_scope"] else result["ranking"][0]["intent"])


async def test_the_label_set_can_be_named(intents: Intents) -> None:
    body = (await intents.intent("2222", label_set="digits")).json()
    assert body["label_set"] == "digits"
    assert body["results"][0]["ranking"][0]["intent"] == "2"
    refused = await intents.intent("2222", label_set="nope")
    assert_problem(refused, 404, "not_found", "/label_set")
    assert "digits, letters" in refused.json()["detail"]


async def test_the_threshold_of_the_request_replaces_that_of_the_head(intents: Intents) -> None:
    (score,) = [result["out_of_scope_score"] for result in (await intents.intent("ccccc")).json()["results"]]
    below, above = max(0.0, score - 0.01), min(1.0, score + 0.01)
    remaining = (await intents.intent("ccccc", threshold=above)).json()["results"][0]
    away = (await intents.intent("ccccc", threshold=0)).json()["results"][0] if below == 0 else None
    assert (remaining["out_of_scope"], remaining["intent"]) == (False, "c")
    strange = (await intents.intent("利润增长股票", threshold=0)).json()["results"][0]
    assert (strange["out_of_scope"], strange["intent"]) == (True, None)
    assert away is None or away["out_of_scope"] is (score > 0)


async def test_the_newest_customer_turn_is_classified_and_the_oldest_turns_are_dropped(intents: Intents) -> None:
    after = {"turns": [turn(CUSTOMER, "aaaaa"), turn(AGENT, "bbbbb")]}
    alone = (await intents.intent("aaaaa")).json()["results"][0]
    assert (await intents.intent(after)).json()["results"][0]["ranking"] == alone["ranking"]
    many = {"turns": [turn(AGENT, "x" * 40) for _ in range(20)] + [turn(CUSTOMER, "aaaaa")]}
    result = (await intents.intent(many)).json()["results"][0]
    assert result["turns_used"] + result["turns_dropped"] == 21
    assert 1 < result["turns_used"] < 20
    assert result["tokens"] <= intents.bundle.max_tokens
    long = (await intents.intent({"turns": [turn(AGENT, "yes?"), turn(CUSTOMER, "a" * 100_000)]})).json()["results"][0]
    assert (long["truncated"], long["turns_used"], long["turns_dropped"]) == (True, 1, 1)
    assert_problem(await intents.intent("a" * 100_000, truncate=False), 422, "text_too_long", "/inputs")


async def test_a_dialogue_may_have_both_languages(intents: Intents) -> None:
    for texts in (("股票上涨", "aaaa"), ("aaaa", "股票上涨")):
        answer = await intents.intent({"turns": [turn(CUSTOMER, text) for text in texts]})
        assert answer.json()["results"][0]["turns_used"] == 2


async def test_many_dialogues_get_the_answers_of_single_requests(intents: Intents) -> None:
    texts = [letter * length for letter in "abc1" for length in range(3, 10)]
    together = (await intents.intent(texts)).json()["results"]
    alone = [(await intents.intent(text)).json()["results"][0] for text in texts]
    for result, other in zip(together, alone, strict=True):
        assert result["intent"] == other["intent"]
        assert result["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
        assert result["out_of_scope_score"] == pytest.approx(other["out_of_scope_score"], abs=1e-4)


async def test_a_bad_item_does_not_affect_the_rest(intents: Intents) -> None:
    good, bad = (await intents.intent(["aaaa", {"text": " ", "id": "x"}])).json()["results"]
    assert good["ranking"][0]["intent"] == "a"
    assert (bad["error"]["code"], bad["id"]) == ("empty_text", "x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"inputs": []}, "/inputs"),
        ({"inputs": {}}, "/inputs"),
        ({"inputs": {"text": "a", "turns": [turn(CUSTOMER, "a")]}}, "/inputs"),
        ({"inputs": {"turns": []}}, "/inputs/turns"),
        ({"inputs": {"turns": [turn(AGENT, "a")]}}, "/inputs"),
        ({"inputs": {"turns": [turn("bot", "a")]}}, "/inputs/turns/0/speaker"),
        ({"inputs": {"turns": [turn(CUSTOMER, "a"), turn(AGENT, " ")]}}, "/inputs/turns/1/text"),
        ({"inputs": [{"turns": [turn(CUSTOMER, "a")] * 500}]}, "/inputs/0/turns"),
        ({"inputs": "a", "threshold": 1.5}, "/threshold"),
        ({"inputs": "a", "threshold": -0.1}, "/threshold"),
        ({"inputs": "a", "top_k": 0}, "/top_k"),
        ({"inputs": "a", "top_k": 10_000}, "/top_k"),
        ({"inputs": "a", "label_set": 3}, "/label_set"),
        ({"inputs": ["a"] * 257}, "/inputs"),
        ({"inputs": "a", "label": "letters"}, "/label"),
    ],
)
async def test_bad_input_has_a_pointer(intents: Intents, body: Any, pointer: str) -> None:
    assert_problem(await intents.client.post("/v1/intent", json=body), 422, "invalid_request", pointer)


async def test_malformed_bodies_are_refused(intents: Intents) -> None:
    for path in ("/v1/intent", "/v1/replies"):
        for content, status, code in ((b"{", 400, "malformed_json"), (b"\xff", 400, "malformed_body")):
            assert_problem(await intents.client.post(path, content=content, headers=JSON), status, code)


async def test_models_list_label_sets_and_reply_sets(intents: Intents) -> None:
    (model,) = (await intents.client.get("/v1/models")).json()["models"]
    assert model["task"] == "intent"
    assert model["label_sets"] == {"letters": ["a", "b", "c"], "digits": ["1", "2", "3", "4"]}
    assert model["reply_sets"] == []


@pytest.mark.slow
async def test_heads_that_change_fail_no_request_and_mix_no_labels(intents: Intents) -> None:
    """Half of the callers use a label set that stays. The label set of the rest changes between two sets of intents."""
    versions = [
        tiny_head("mine", starts, open_text_encoder(intents.bundle), intents.bundle.encoder_digest)
        for starts in ("xy", "uv")
    ]
    path = intents.folder / "mine.head.safetensors"
    going = True

    async def ask(labels: str) -> list[tuple[int, frozenset[str]]]:
        result = []
        while going:
            answer = await intents.intent(["aaaa", "xxxx"], label_set=labels)
            named = {r["intent"] for item in answer.json().get("results", ()) for r in item["ranking"]}
            result.append((answer.status_code, frozenset(named)))
            await asyncio.sleep(0.005)  # a refusal never waits, and would keep all other tasks from running
        return result

    asking = [asyncio.create_task(ask(labels)) for labels in ("letters", "mine") * 4]
    for index in range(6):
        save_head(versions[index % 2], path)
        async with asyncio.timeout(60):
            while (
                "mine" not in intents.registry.heads
                or intents.registry.heads["mine"].labels != versions[index % 2].labels
            ):
                await asyncio.sleep(0.02)
    path.unlink()
    async with asyncio.timeout(60):
        while "mine" in intents.registry.heads:
            await asyncio.sleep(0.02)
    going = False
    result = await asyncio.gather(*asking)
    steady = {item for expected in result[::2] for item in expected}
    assert steady == {(200, frozenset("abc"))}
    changing = {item for expected in result[1::2] for item in expected}
    assert changing == {(404, frozenset()), (200, frozenset("xy")), (200, frozenset("uv"))}
