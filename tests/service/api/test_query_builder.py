"""Faults in requests for recommendations, and whom they concern."""

from __future__ import annotations

import json
from typing import Any

import pytest

from models.catalogue.folder import create_catalogue
from service.errors import InvalidRequest, Problem
from service.http.validation import parse
from service.registry.catalogues import FOLDER
from service.schemas.recommend import MAX_RANKED_CANDIDATES, CandidateIds, RecommendRequest, User, fast_parser
from service.schemas.wire import MAX_ID_CHARS
from tests.support.recommender_app import BOUGHT, Shop, event
from tests.support.service_app import JSON, assert_problem
from tests.support.tiny_bundle import WIDTH

pytestmark = pytest.mark.anyio


# Bad input.


async def test_unknown_ids_without_a_text_are_the_error_of_their_user(shop: Shop) -> None:
    users = [
        {"id": "a", "history": [event("nope")]},
        {"id": "b", "history": [BOUGHT]},
        {"id": "c", "history": [BOUGHT], "candidates": [{"item_id": "item-a1"}, {"item_id": "x"}, {"item_id": "y"}]},
    ]
    first, second, third = (await shop.send(users)).json()["results"]
    assert (first["error"]["code"], first["error"]["status"], first["id"]) == ("unknown_item", 422, "a")
    assert "event 0" in first["error"]["detail"]
    assert second["items"]
    assert "2 candidates, 1 first," in third["error"]["detail"]
    assert_problem(await shop.send(users[2]), 422, "unknown_item", "/inputs/candidates/1")
    assert_problem(await shop.send([users[0]]), 422, "unknown_item", "/inputs/0/history/0")


async def test_unknown_ids_can_be_skipped_and_are_counted(shop: Shop) -> None:
    history = [event("nope", days_ago=1), event("item-a3", days_ago=2), event("none", days_ago=3)]
    candidates = [{"item_id": "x"}, {"item_id": "item-b1"}, {"text": "bbb"}]
    result = await shop.ask(history, candidates=candidates, on_unknown="skip")
    assert (result["history_used"], result["history_skipped"], result["candidates_skipped"]) == (1, 2, 1)
    assert {item["candidate_index"] for item in result["items"]} == {1, 2}
    assert all(reason["history_index"] == 1 for item in result["items"] for reason in item["reasons"])
    nothing = await shop.ask([event("nope")], on_unknown="skip")
    assert (nothing["cold_start"], nothing["history_skipped"]) == (True, 1)
    nobody = await shop.ask([BOUGHT], candidates=[{"item_id": "x"}], on_unknown="skip")
    assert (nobody["items"], nobody["candidates_skipped"]) == ([], 1)


async def test_repeated_candidates_are_ranked_once_and_counted(shop: Shop) -> None:
    candidates = [{"item_id": "item-b1"}, {"text": "new"}, {"item_id": "item-b1"}, {"text": "new"}, {"text": "newer"}]
    result = await shop.ask([BOUGHT], candidates=candidates)
    assert sorted(item["candidate_index"] for item in result["items"]) == [0, 1, 4]
    assert result["candidates_repeated"] == 2
    known = [{"item_id": item_id} for item_id in ("item-b1", "item-c1", "item-b1")]
    result = await shop.ask([BOUGHT], candidates=known)
    assert sorted(item["candidate_index"] for item in result["items"]) == [0, 1]
    assert result["candidates_repeated"] == 1


async def test_events_in_the_future_are_refused(shop: Shop) -> None:
    refused = await shop.send({"history": [event("item-a3", days_ago=1), event("item-a3", days_ago=-2)]})
    assert_problem(refused, 422, "invalid_request", "/inputs/history/1/at")
    assert "future" in refused.json()["detail"]
    assert (await shop.ask([event("item-a3", days_ago=-0.9)]))["history_used"] == 1  # another time zone or clock


async def test_times_on_a_part_of_the_events_are_refused(shop: Shop) -> None:
    refused = await shop.send({"history": [event("item-a3", days_ago=1), event("item-b1")]})
    assert_problem(refused, 422, "invalid_request", "/inputs/history/1")
    assert "1 of 2 events have a time" in refused.json()["detail"]


@pytest.mark.parametrize("at", ["2011-11-03T10:00:00Z", "2011-11-03t10:00:00.123456789z", "2011-11-03 10:00:00+08:00"])
async def test_times_are_rfc_3339(shop: Shop, at: str) -> None:
    assert (await shop.ask([BOUGHT | {"at": at}]))["history_used"] == 1


@pytest.mark.parametrize(
    "at",
    [
        "2011-11-03",
        "2011-11-03T10:00:00",
        "1320314400",
        "2011-13-03T10:00:00Z",
        "yesterday",
        "",
        "0000-01-01T00:00:00Z",
    ],
)
async def test_invalid_times_are_refused(shop: Shop, at: str) -> None:
    assert_problem(await shop.send({"history": [BOUGHT | {"at": at}]}), 422, "invalid_request", "/inputs/history/0/at")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bad_event", "pointer"),
    [
        (event("item-a3", "rating"), "/inputs/history/0"),
        (event("item-a3", "rating", value=6), "/inputs/history/0/value"),
        (event("item-a3", "rating", value=-1), "/inputs/history/0/value"),
        (event("item-a3", "rating", value="5"), "/inputs/history/0/value"),
        (event("item-a3", "view", value=5), "/inputs/history/0/value"),
        ({"event": "view"}, "/inputs/history/0"),
        ({"item_id": "item-a3"}, "/inputs/history/0/event"),
        ({"item_id": "", "event": "view"}, "/inputs/history/0/item_id"),
        ({"item_id": 3, "event": "view"}, "/inputs/history/0/item_id"),
        ({"item_id": "i" * 257, "event": "view"}, "/inputs/history/0/item_id"),
        (event("item-a3", ""), "/inputs/history/0/event"),
        (event("item-a3", "e" * 65), "/inputs/history/0/event"),
        (event("item-a3", weight=3), "/inputs/history/0/weight"),
        ("item-a3", "/inputs/history/0"),
    ],
)
async def test_a_bad_event_has_a_pointer(shop: Shop, bad_event: Any, pointer: str) -> None:
    assert_problem(await shop.send({"history": [bad_event]}), 422, "invalid_request", pointer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("user", "pointer"),
    [
        ({}, "/inputs/history"),
        ({"history": None}, "/inputs/history"),
        ({"history": [], "candidates": []}, "/inputs/candidates"),
        ({"history": [], "candidates": [{}]}, "/inputs/candidates/0"),
        ({"history": [], "candidates": [{"item_id": "item-a1", "price": 3}]}, "/inputs/candidates/0/price"),
        ({"history": [], "candidates": [{"item_id": str(n)} for n in range(10_001)]}, "/inputs/candidates"),
        ({"history": [], "top_k": 0}, "/inputs/top_k"),
        ({"history": [], "top_k": 101}, "/inputs/top_k"),
        ({"history": [], "exclude_history": 1}, "/inputs/exclude_history"),
        ({"history": [], "filter": []}, "/inputs/filter"),
        ({"history": [], "on_unknown": "zero"}, "/inputs/on_unknown"),
        ({"history": [], "catalogue": 3}, "/inputs/catalogue"),
        ({"history": [], "id": "i" * 257}, "/inputs/id"),
        ({"history": [], "user": "x"}, "/inputs/user"),
        ("u-17", "/inputs"),
        ([], "/inputs"),
        ([{"history": []}] * 65, "/inputs"),
        ([{"history": []}, "u-17"], "/inputs/1"),
    ],
)
async def test_bad_input_has_a_pointer(shop: Shop, user: Any, pointer: str) -> None:
    assert_problem(await shop.send(user), 422, "invalid_request", pointer)


async def test_an_empty_text_is_the_error_of_its_user(shop: Shop) -> None:
    users = [{"history": [BOUGHT], "candidates": [{"text": "a"}, {"text": " "}]}, {"history": [BOUGHT]}]
    first, second = (await shop.send(users)).json()["results"]
    assert first["error"]["code"] == "empty_text"
    assert second["items"]
    assert_problem(await shop.send(users[0]), 422, "empty_text", "/inputs/candidates/1/text")
    silent = {"history": [BOUGHT, {"text": "", "event": "view"}]}
    assert_problem(await shop.send([silent]), 422, "empty_text", "/inputs/0/history/1/text")


async def test_a_long_text_is_truncated_and_marked(shop: Shop) -> None:
    result = await shop.ask([BOUGHT], candidates=[{"text": "a" * 100_000}, {"text": "b"}])
    assert (result["truncated"], len(result["items"])) == (True, 2)
    assert (await shop.ask([BOUGHT], candidates=[{"text": "b"}]))["truncated"] is False


async def test_an_unknown_catalogue_is_not_found(shop: Shop) -> None:
    assert_problem(await shop.send({"history": [], "catalogue": "books"}), 404, "not_found", "/inputs/catalogue")
    good, bad = (await shop.send([{"history": [BOUGHT]}, {"history": [], "catalogue": "books"}])).json()["results"]
    assert good["items"]
    assert (bad["error"]["status"], bad["error"]["code"]) == (404, "not_found")


async def test_a_catalogue_of_another_model_is_refused(shop: Shop) -> None:
    create_catalogue(shop.folder / FOLDER / "old", "0" * 64, WIDTH)
    user = {"history": [], "catalogue": "old"}
    assert_problem(await shop.send(user), 409, "catalogue_outdated")
    good, bad = (await shop.send([{"history": [BOUGHT]}, user])).json()["results"]
    assert good["items"]
    assert (bad["error"]["status"], bad["error"]["code"]) == (409, "catalogue_outdated")


async def test_a_hundred_thousand_candidates_exceed_the_limit_of_a_body(shop: Shop) -> None:
    refused = await shop.send({"history": [], "candidates": [{"item_id": f"item-{n}"} for n in range(100_000)]})
    assert_problem(refused, 413, "body_too_large")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_a_value_that_is_not_a_number_is_refused(shop: Shop, number: str) -> None:
    for value in ({"history": [event("item-a3", "rating", value=7.25)]}, {"history": [], "filter": {"price": 7.25}}):
        content = json.dumps({"inputs": value}).replace("7.25", number)
        refused = await shop.client.post("/v1/recommend", content=content, headers=JSON)
        assert refused.status_code in (400, 422), refused.text
        assert refused.json()["code"] in ("malformed_json", "invalid_request")


async def test_malformed_bodies_are_refused(shop: Shop) -> None:
    for content, status, code in ((b"{", 400, "malformed_json"), (b"\xff", 400, "malformed_body")):
        assert_problem(await shop.client.post("/v1/recommend", content=content, headers=JSON), status, code)


@pytest.mark.parametrize(
    "wrong", [{"item_id": 5}, {"item_id": ""}, {"item_id": "x" * (MAX_ID_CHARS + 1)}, {"item_id": "a", "x": 1}, [], "a"]
)
def test_both_parsers_refuse_a_wrong_candidate_among_ids(wrong: object) -> None:
    body = json.dumps({"inputs": {"history": [], "candidates": [{"item_id": "a"}, wrong, {"item_id": "b"}]}}).encode()
    with pytest.raises(ValueError, match="candidates"):
        fast_parser(body)
    with pytest.raises(InvalidRequest) as refused:
        parse(RecommendRequest, body)
    assert refused.value.pointer is not None
    assert refused.value.pointer.startswith("/inputs/candidates/1")


def test_both_parsers_return_the_same_request() -> None:
    history = [{"item_id": "a", "event": "rating", "value": 4, "at": "2011-11-03T10:00:00Z"}]
    plain = [{"item_id": "a"}, {"item_id": "\u732b"}, {"item_id": "a"}, {"item_id": "x" * MAX_ID_CHARS}]
    for candidates in (None, plain, [*plain, {"text": "c"}, {}]):
        user = {"history": history, "candidates": candidates, "filter": {"price": {"lt": 5e22}}, "id": "u"}
        for inputs in (user, [user, user]):
            body = json.dumps({"inputs": inputs}).encode()
            assert spelled(fast_parser(body)) == spelled(parse(RecommendRequest, body))


def spelled(request: RecommendRequest) -> list[dict[str, object]]:
    users = request.inputs if isinstance(request.inputs, list) else [request.inputs]
    return [dict(user) | {"candidates": user.candidates and list(user.candidates)} for user in users]


def test_candidates_with_ids_alone_become_candidate_ids() -> None:
    body = json.dumps({"inputs": {"history": [], "candidates": [{"item_id": "a"}, {"item_id": "b"}]}}).encode()
    request = fast_parser(body.replace(b'"a"', b'"old", "item_id": "a"'))
    assert isinstance(request.inputs, User)
    assert isinstance(request.inputs.candidates, CandidateIds)
    assert request.inputs.candidates.ids == ["a", "b"]
    assert list(request.inputs.candidates[1:]) == [{"item_id": "b"}]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"a"', b'"\\ud800"'),
        (b'"a"', b'"\\udc00b"'),
        (b'"a"', b'"\\ud800\\u0041"'),
        (b'"a"', b'"\xff"'),
        (b'"a"', b'"\xed\xa0\x80"'),
        (b'"a"', b'"\n"'),
        (b'{"item_id"', b'{"text": "\\ud800", "item_id"'),
        (b"[]", b"[" * 100_000 + b"]" * 100_000),
        (b"[]", b"[NaN]"),
        (b"[]", b'[], "top_k": 18446744073709551626'),
        (b"[]", b'[], "top_k": 10.0'),
        (b"[]", b'[], "unknown": 1'),
        (b'{"inputs"', b'{"unknown": 1, "inputs"'),
        (b"]}", b"]},"),
        (b"]}", b'], "candidates": []}'),
    ],
)
def test_both_parsers_refuse_the_same_bodies(old: bytes, new: bytes) -> None:
    body = json.dumps({"inputs": {"history": [], "candidates": [{"item_id": "a"}]}}).encode().replace(old, new)
    with pytest.raises(ValueError, match=r"."):
        fast_parser(body)
    with pytest.raises(Problem):
        parse(RecommendRequest, body)


def test_both_parsers_refuse_too_many_candidates() -> None:
    candidates = [{"item_id": str(index)} for index in range(MAX_RANKED_CANDIDATES + 1)]
    for value in (candidates[1:], candidates):
        body = json.dumps({"inputs": {"history": [], "candidates": value}}).encode()
        if value is candidates:
            with pytest.raises(ValueError, match="at most"):
                fast_parser(body)
        else:
            assert spelled(fast_parser(body)) == spelled(parse(RecommendRequest, body))
