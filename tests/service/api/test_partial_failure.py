"""Wrong inputs in a list, through the routes: the others are answered."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from service.schemas.intent import IntentResponse
from service.schemas.recommend import RecommendResponse
from service.schemas.sentiment import SentimentResponse
from tests.support.intent_app import Intents
from tests.support.recommender_app import BOUGHT, Shop
from tests.support.service_app import JSON, Service

pytestmark = pytest.mark.anyio


def errors_of(response: httpx.Response) -> dict[int, Any]:
    """Return pointers by position; every other result is an answer."""
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    failed = {index: result["error"] for index, result in enumerate(results) if "error" in result}
    assert all(error["status"] == 422 and error["detail"].endswith(".") for error in failed.values())
    return {index: error.get("pointer") for index, error in failed.items()}


async def test_sentiment(service: Service) -> None:
    body = b'{"inputs": ["good", null, {"text": 3, "id": "n"}, "\\ud800", {"text": " "}, " ", {"text": "bad"}]}'
    response = await service.send(body)
    SentimentResponse.model_validate_json(response.content)
    pointers = {1: "/inputs/1", 2: "/inputs/2/text", 3: "/inputs/3", 4: "/inputs/4/text", 5: "/inputs/5"}
    assert errors_of(response) == pointers
    results = response.json()["results"]
    assert (results[0]["label"], results[6]["label"], results[2]["id"]) == ("positive", "negative", "n")


async def test_a_byte_order_mark_before_json_is_accepted(service: Service) -> None:
    assert (await service.send(b'\xef\xbb\xbf{"inputs": "good"}', JSON)).status_code == 200


async def test_the_refusal_of_a_long_text_tells_its_length_and_the_limit(service: Service) -> None:
    for text, length in (("good " * 600, "602"), ("good " * 5_000, "more than 32")):
        response = await service.ask([text, "good"], truncate=False)
        detail = response.json()["results"][0]["error"]["detail"]
        assert detail.startswith(f"The text has {length}")
        assert detail.endswith(" tokens, and the limit is 512.")


async def test_the_language_is_told_and_one_that_no_model_knows_is_marked(service: Service) -> None:
    results = (await service.ask(["good day", "利润大增", "Le service est terrible"])).json()["results"]
    assert [result["language"] for result in results] == ["en", "zh", "other"]
    assert [result.get("unsupported_language") for result in results] == [None, None, True]


async def test_intent(intents: Intents) -> None:
    turn = {"speaker": "customer", "text": "aaaa"}
    inputs = [
        "aaaa",
        None,
        {"turns": [turn, {"speaker": "agent", "text": ""}], "id": "empty agent turn"},
        {"turns": [{"speaker": "agent", "text": "bbbb"}], "id": "no customer turn"},
        {"turns": [turn, turn], "id": "good"},
    ]
    response = await intents.intent(inputs)
    IntentResponse.model_validate_json(response.content)
    assert errors_of(response) == {1: "/inputs/1", 2: "/inputs/2/turns/1/text", 3: "/inputs/3"}
    assert [result["id"] for result in response.json()["results"]] == [None, None, *(item["id"] for item in inputs[2:])]  # type: ignore[index]
    assert response.json()["results"][4]["turns_used"] == 2
    assert response.json()["results"][4]["language"] == "en"


async def test_recommend(shop: Shop) -> None:
    rated = {"item_id": "item-a1", "event": "rating", "value": 6}
    zoneless = {"item_id": "item-a1", "event": "view", "at": "2011-11-03T10:00:00"}
    users = [
        {"history": [rated], "id": "six"},
        {"history": [BOUGHT], "id": "good"},
        None,
        {"history": [zoneless]},
        {"history": [{"item_id": "nope", "event": "view"}]},
        {"history": [BOUGHT], "catalogue": "none"},
    ]
    response = await shop.send(users)
    assert response.status_code == 200, response.text
    RecommendResponse.model_validate_json(response.content)
    results = response.json()["results"]
    assert [result.get("error", {}).get("pointer") for result in results] == [
        "/inputs/0/history/0/value",
        None,
        "/inputs/2",
        "/inputs/3/history/0/at",
        "/inputs/4/history/0",
        "/inputs/5/catalogue",
    ]
    assert ([result["id"] for result in results[:3]], bool(results[1]["items"])) == (["six", "good", None], True)


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("2016-12-31T23:59:60Z", None),
        ("2017-01-01T00:59:60.5+01:00", None),
        ("2016-12-31T12:00:60Z", "a leap second is the last of a month, 23:59:60 in UTC"),
        ("2016-12-30T23:59:60Z", "a leap second"),
        ("2016-12-31T23:59:61Z", "no such time"),
    ],
)
async def test_a_leap_second_is_a_time_and_no_other_60th_is(shop: Shop, at: str, words: str | None) -> None:
    response = await shop.send({"history": [{"item_id": "item-a1", "event": "view", "at": at}]})
    assert response.status_code == (200 if words is None else 422), response.text
    assert words is None or words in response.json()["detail"]


async def test_the_limit_of_users_that_is_told_is_the_one_that_holds(shop: Shop) -> None:
    (model,) = (await shop.client.get("/v1/models")).json()["models"]
    limit = model["limits"]["max_inputs"]
    assert (await shop.send([{"history": [BOUGHT]}] * limit)).status_code == 200
    assert (await shop.send([{"history": [BOUGHT]}] * (limit + 1))).status_code == 422
