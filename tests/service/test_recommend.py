"""Recommendations over HTTP, from a real tiny bundle and its catalogue in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.bundle import Bundle, load
from models.ranking import Ranked, Recommender, load_recommender
from models.runtime_onnx import OnnxRuntime
from models.tokens import Tokenizer
from service.cache import Cache
from service.catalogues import Catalogues
from service.engine import Engine
from service.gateway import create_app
from service.metrics import Metrics
from service.recommending import TASK, Recommending
from service.schemas_recommend import RecommendResponse
from service.settings import Settings
from tests.service import fakes
from tests.service.serving import JSON, assert_problem
from tests.tiny import CATALOGUE, CATALOGUE_ITEMS, tiny_recommend_bundle

pytestmark = pytest.mark.anyio

BOUGHT = {"item_id": "item-a3", "event": "purchase"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load(tiny_recommend_bundle(tmp_path_factory.mktemp("bundle")))


@dataclass(frozen=True)
class Shop:
    client: httpx.AsyncClient
    metrics: Metrics
    recommending: Recommending

    async def send(self, inputs: Any) -> httpx.Response:
        return await self.client.post("/v1/recommend", json={"inputs": inputs})

    async def ask(self, history: list[Any], **more: Any) -> dict[str, Any]:
        """The one result of one user."""
        answer = await self.send({"history": history, **more})
        assert answer.status_code == 200, answer.text
        RecommendResponse.model_validate_json(answer.content)
        (result,) = answer.json()["results"]
        return dict(result)


@asynccontextmanager
async def serving(
    bundle: Bundle, folder: Path, metrics: Metrics, kind: type[Recommender] = Recommender
) -> AsyncIterator[Shop]:
    task = metrics.task("recommend")
    tokenizer = Tokenizer(bundle.tokenizer, bundle.max_tokens)
    engine = Engine(bundle, tokenizer, OnnxRuntime(bundle.graph), fakes.LIMITS, task)
    recommender = load_recommender(bundle)
    recommender.__class__ = kind
    recommending = Recommending(recommender, metrics.task(TASK))
    catalogues = Catalogues(bundle, recommender, folder)
    predictors = {"recommend": Cache(engine, 0, task)}
    app = create_app(predictors, Settings(), metrics, recommending=recommending, catalogues=catalogues)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        yield Shop(client, metrics, recommending)


@pytest.fixture
async def shop(bundle: Bundle, tmp_path: Path, metrics: Metrics) -> AsyncIterator[Shop]:
    async with serving(bundle, tmp_path / "shelf", metrics) as running:
        yield running


def event(item_id: str, kind: str = "purchase", days_ago: float | None = None, **more: Any) -> dict[str, Any]:
    """Of an item of the catalogue."""
    at = {} if days_ago is None else {"at": (datetime.now(UTC) - timedelta(days=days_ago)).isoformat()}
    return {"item_id": item_id, "event": kind, **at, **more}


def ids(result: dict[str, Any]) -> list[str | None]:
    return [item["item_id"] for item in result["items"]]


def scores(result: dict[str, Any]) -> dict[str, float]:
    return {item["item_id"]: item["score"] for item in result["items"]}


# What is ranked.


async def test_the_whole_catalogue_is_ranked_without_candidates(shop: Shop) -> None:
    result = await shop.ask([BOUGHT, event("item-b2", "view")], top_k=7, id="u-17")
    assert [item["rank"] for item in result["items"]] == [1, 2, 3, 4, 5, 6, 7]
    found = [item["score"] for item in result["items"]]
    assert found == sorted(found, reverse=True)
    texts = {item.item_id: item.text for item in CATALOGUE_ITEMS}
    assert all(texts[item["item_id"]] == item["text"] for item in result["items"])
    assert {item["candidate_index"] for item in result["items"]} == {None}
    assert (result["catalogue"], result["cold_start"], result["id"]) == (CATALOGUE, False, "u-17")
    assert (result["history_used"], result["history_dropped"], result["history_skipped"]) == (2, 0, 0)
    everything = await shop.ask([BOUGHT, event("item-b2", "view")], top_k=100)
    assert sorted(ids(everything), key=str) == sorted(texts)
    assert ids(everything)[:7] == ids(result)


async def test_candidates_are_ranked_as_they_stand_in_the_whole_catalogue(shop: Shop) -> None:
    everything = scores(await shop.ask([BOUGHT], top_k=100))
    candidates = [{"item_id": item_id} for item_id in ("item-c1", "item-a3", "item-上2", "item-b8")]
    result = await shop.ask([BOUGHT], candidates=candidates)
    assert scores(result) == {one["item_id"]: pytest.approx(everything[one["item_id"]]) for one in candidates}
    for item in result["items"]:
        assert candidates[item["candidate_index"]]["item_id"] == item["item_id"]


async def test_an_items_text_sent_along_counts_as_the_item_does_but_for_what_was_learned_of_it(
    shop: Shop, bundle: Bundle
) -> None:
    """Without its id-vector, which the model adds to those it was trained with, a text is placed as anyone's."""
    known, sent = [await shop.ask([BOUGHT], candidates=[one]) for one in ({"item_id": "item-c4"}, {"text": "cccc"})]
    (item,) = sent["items"]
    assert (item["item_id"], item["text"], item["candidate_index"]) == (None, "cccc", 0)
    assert item["score"] == pytest.approx(known["items"][0]["score"], abs=0.1)
    own = await shop.ask([BOUGHT], candidates=[{"item_id": "mine", "text": "cccc"}])
    assert own["items"][0] | {"item_id": None} == item
    assert own["items"][0]["item_id"] == "mine"


async def test_a_text_in_the_history_counts(shop: Shop) -> None:
    without = scores(await shop.ask([BOUGHT], top_k=100))
    with_it = scores(await shop.ask([{"text": "bbbb", "event": "view"}, BOUGHT], top_k=100))
    assert with_it.keys() == without.keys()
    assert with_it != without


async def test_an_item_of_the_catalogue_needs_no_text_and_is_not_read_again(shop: Shop) -> None:
    assert await shop.ask([BOUGHT | {"text": "bbbb"}]) == await shop.ask([BOUGHT])


async def test_a_text_goes_for_every_mention_of_its_id(shop: Shop) -> None:
    viewed = {"item_id": "new", "event": "view"}
    once = await shop.ask([viewed, BOUGHT], candidates=[{"item_id": "new", "text": "bbb"}, {"item_id": "item-c1"}])
    twice = await shop.ask(
        [viewed | {"text": "bbb"}, BOUGHT], candidates=[{"item_id": "new", "text": "bbb"}, {"item_id": "item-c1"}]
    )
    assert once == twice
    (reason,) = [one for item in once["items"] if item["item_id"] == "new" for one in item["because"][:1]]
    assert reason["history_index"] == 0  # the same item, which the tiny model heeds most


async def test_chinese_items_and_histories_of_both_languages(shop: Shop) -> None:
    history = [
        {"text": "手机质量好", "event": "view"},
        event("item-上3", "cart"),
        {"text": "a phone", "event": "purchase"},
    ]
    result = await shop.ask(history, candidates=[{"text": "快递"}, {"text": "bbb"}, {"item_id": "item-下2"}])
    assert result["history_used"] == 3
    assert sorted(item["text"] for item in result["items"]) == sorted(["快递", "bbb", "下下"])


# What the history says.


async def test_because_names_events_as_they_were_sent(shop: Shop) -> None:
    """The tiny model heeds most what comes again."""
    history = [event("item-c1", days_ago=1), event("item-a3", days_ago=9), event("item-b2", days_ago=5)]
    for place, one in enumerate(history):
        result = await shop.ask(history, candidates=[{"item_id": one["item_id"]}])
        because = result["items"][0]["because"]
        assert because[0]["history_index"] == place
        weights = [reason["weight"] for reason in because]
        assert weights == sorted(weights, reverse=True)
        assert weights[-1] >= 0.05
        assert sum(weights) < 1
        assert len(weights) <= 3


async def test_small_weights_are_no_reasons(shop: Shop) -> None:
    history = [event(item.item_id) for item in CATALOGUE_ITEMS] * 3
    result = await shop.ask(history, top_k=40)
    reasons = [reason["weight"] for item in result["items"] for reason in item["because"]]
    assert len(reasons) < 40 * 3
    assert all(weight >= 0.05 for weight in reasons)


async def test_events_are_sorted_by_their_times(shop: Shop) -> None:
    history = [event("item-a3", days_ago=9), event("item-b2", "view", days_ago=5), event("item-c1", days_ago=1)]
    sent = [history[1], history[2], history[0]]
    one, other = await shop.ask(history, top_k=40), await shop.ask(sent, top_k=40)
    assert scores(one) == pytest.approx(scores(other), abs=1e-4)
    for item, again in zip(one["items"], other["items"], strict=True):
        named = [history[reason["history_index"]] for reason in item["because"]]
        assert named == [sent[reason["history_index"]] for reason in again["because"]]


async def test_times_count_and_without_them_the_order_as_sent(shop: Shop) -> None:
    names = ["item-a3", "item-b2", "item-c1"]
    found = [
        scores(await shop.ask([event(name, days_ago=day) for name, day in zip(names, days, strict=True)], top_k=40))
        for days in ((3, 2, 1), (400, 2, 1))
    ]
    assert found[0] != found[1]
    forward, back = [
        scores(await shop.ask([event(name) for name in given], top_k=40)) for given in (names, names[::-1])
    ]
    assert forward != back


async def test_the_newest_256_events_are_read(shop: Shop) -> None:
    older = [event("item-b2", days_ago=500 + day) for day in range(300)]
    newer = [event(f"item-{'abc'[day % 3]}{1 + day % 8}", days_ago=day) for day in range(256)]
    mixed = [one for pair in zip(older, newer, strict=False) for one in pair] + older[256:]
    result, alone = await shop.ask(mixed, top_k=40), await shop.ask(newer, top_k=40)
    assert (result["history_used"], result["history_dropped"]) == (256, 300)
    assert (alone["history_used"], alone["history_dropped"]) == (256, 0)
    assert scores(result) == pytest.approx(scores(alone), abs=1e-4)
    for item in result["items"]:
        assert all(mixed[reason["history_index"]] in newer for reason in item["because"])


async def test_ten_thousand_events_are_taken_and_no_more(shop: Shop) -> None:
    result = await shop.ask([BOUGHT] * 10_000)
    assert (result["history_used"], result["history_dropped"]) == (256, 9_744)
    refused = await shop.send({"history": [BOUGHT] * 10_001})
    assert_problem(refused, 422, "invalid_request", "/inputs/history")
    assert "10000" in refused.json()["detail"]


async def test_a_low_rating_is_a_dislike(shop: Shop) -> None:
    asked = [{"item_id": "item-a3"}]
    liked, disliked, said = [
        (await shop.ask([event("item-c1", "view"), event("item-a3", **kind)], candidates=asked))["items"][0]
        for kind in ({"kind": "rating", "value": 4.5}, {"kind": "rating", "value": 2.5}, {"kind": "dislike"})
    ]
    assert liked["score"] > disliked["score"]
    assert disliked == said
    assert [reason["history_index"] for reason in liked["because"]][:1] == [1]
    assert 1 not in [reason["history_index"] for reason in disliked["because"]]
    neutral = (await shop.ask([event("item-c1", "view"), event("item-a3", "like")], candidates=asked))["items"][0]
    assert neutral == liked
    (at_three,) = (await shop.ask([event("item-c1", "view"), event("item-a3", "rating", value=3)], candidates=asked))[
        "items"
    ]
    assert at_three == liked


async def test_only_dislikes_are_a_history_too(shop: Shop) -> None:
    result = await shop.ask([event("item-a3", "dislike")])
    assert (result["cold_start"], len(result["items"])) == (False, 10)


async def test_unknown_kinds_of_events_count_as_other(shop: Shop) -> None:
    made_up, other = [await shop.ask([event("item-a3", kind)]) for kind in ("wished for 愿望", "other")]
    assert made_up == other
    assert scores(await shop.ask([event("item-a3", "cart")])) != scores(other)


# Without a history.


async def test_no_history_gives_what_is_popular_and_says_so(shop: Shop) -> None:
    result = await shop.ask([], top_k=12)
    popularity = {item.item_id: item.popularity for item in CATALOGUE_ITEMS}
    total = sum(popularity.values())
    assert result["cold_start"] is True
    assert [popularity[str(one)] for one in ids(result)] == sorted(popularity.values(), reverse=True)[:12]
    assert scores(result) == {one: pytest.approx(popularity[str(one)] / total) for one in ids(result)}
    assert [item["because"] for item in result["items"]] == [[]] * 12
    assert [item["rank"] for item in result["items"]] == list(range(1, 13))


async def test_without_a_history_candidates_are_by_popularity_and_texts_come_last(shop: Shop) -> None:
    candidates = [{"text": "new"}, {"item_id": "item-a1"}, {"item_id": "item-a4"}]
    result = await shop.ask([], candidates=candidates, top_k=5)
    assert [item["candidate_index"] for item in result["items"]] == [2, 1, 0]
    assert result["items"][2]["score"] == 0


# What is left out.


async def test_the_items_of_the_history_can_be_left_out(shop: Shop) -> None:
    history = [BOUGHT, {"text": "bbbb", "event": "view"}, event("item-c1", "view")]
    kept, out = [await shop.ask(history, top_k=40, exclude_history=chosen) for chosen in (False, True)]
    assert set(ids(kept)) - set(ids(out)) == {"item-a3", "item-c1"}
    candidates = [{"item_id": "item-a3"}, {"text": "bbbb"}, {"text": "bb"}, {"item_id": "item-b1"}]
    result = await shop.ask(history, candidates=candidates, exclude_history=True)
    assert sorted(item["candidate_index"] for item in result["items"]) == [2, 3]


async def test_events_that_are_not_read_are_left_out_too(shop: Shop) -> None:
    history = [event("item-c1", days_ago=999)] + [event("item-a3", days_ago=1)] * 256
    result = await shop.ask(history, top_k=40, exclude_history=True)
    assert set(ids(result)) == {item.item_id for item in CATALOGUE_ITEMS} - {"item-c1", "item-a3"}


async def test_a_filter_on_attributes(shop: Shop) -> None:
    result = await shop.ask([BOUGHT], top_k=40, filter={"price": {"lt": 3}, "kind": {"in": ["a", "上"]}})
    assert set(ids(result)) == {"item-a1", "item-a2", "item-上1", "item-上2"}
    candidates = [{"item_id": "item-b3"}, {"text": "aaa"}, {"item_id": "item-a8"}, {"item_id": "item-a2"}]
    result = await shop.ask([BOUGHT], candidates=candidates, filter={"kind": "a"}, exclude_history=True)
    assert {item["candidate_index"] for item in result["items"]} == {2, 3}  # a text has no attributes
    cold = await shop.ask([], top_k=2, filter={"kind": "b"})
    assert ids(cold) == ["item-b4", "item-b3"]
    assert (await shop.ask([BOUGHT], filter={"price": {"lt": 0}}))["items"] == []


@pytest.mark.parametrize(
    ("given", "pointer"),
    [
        ({"colour": "red"}, "/inputs/filter/colour"),
        ({"price": {"below": 3}}, "/inputs/filter/price/below"),
        ({"price": {"lt": "cheap"}}, "/inputs/filter/price/lt"),
        ({"price": {}}, "/inputs/filter/price"),
        ({"price": [3]}, "/inputs/filter/price"),
        ({"a/b": 1}, "/inputs/filter/a~1b"),
    ],
)
async def test_a_bad_filter_is_named(shop: Shop, given: Any, pointer: str) -> None:
    assert_problem(await shop.send({"history": [BOUGHT], "filter": given}), 422, "invalid_request", pointer)


# Bad input.


async def test_unknown_ids_without_a_text_are_an_error_of_their_user(shop: Shop) -> None:
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
    assert all(reason["history_index"] == 1 for item in result["items"] for reason in item["because"])
    nothing = await shop.ask([event("nope")], on_unknown="skip")
    assert (nothing["cold_start"], nothing["history_skipped"]) == (True, 1)
    nobody = await shop.ask([BOUGHT], candidates=[{"item_id": "x"}], on_unknown="skip")
    assert (nobody["items"], nobody["candidates_skipped"]) == ([], 1)


async def test_candidates_that_come_twice_are_ranked_once_and_counted(shop: Shop) -> None:
    candidates = [{"item_id": "item-b1"}, {"text": "new"}, {"item_id": "item-b1"}, {"text": "new"}, {"text": "newer"}]
    result = await shop.ask([BOUGHT], candidates=candidates)
    assert sorted(item["candidate_index"] for item in result["items"]) == [0, 1, 4]
    assert result["candidates_repeated"] == 2


async def test_events_of_the_future_are_refused(shop: Shop) -> None:
    refused = await shop.send({"history": [event("item-a3", days_ago=1), event("item-a3", days_ago=-2)]})
    assert_problem(refused, 422, "invalid_request", "/inputs/history/1/at")
    assert "future" in refused.json()["detail"]
    assert (await shop.ask([event("item-a3", days_ago=-0.9)]))["history_used"] == 1  # in another time zone, or clock


async def test_times_for_some_events_and_not_for_others_are_refused(shop: Shop) -> None:
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
async def test_times_that_are_none_are_refused(shop: Shop, at: str) -> None:
    assert_problem(await shop.send({"history": [BOUGHT | {"at": at}]}), 422, "invalid_request", "/inputs/history/0/at")


@pytest.mark.parametrize(
    ("one", "pointer"),
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
async def test_a_bad_event_is_named(shop: Shop, one: Any, pointer: str) -> None:
    assert_problem(await shop.send({"history": [one]}), 422, "invalid_request", pointer)


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
async def test_bad_input_is_named(shop: Shop, user: Any, pointer: str) -> None:
    assert_problem(await shop.send(user), 422, "invalid_request", pointer)


async def test_an_empty_text_is_an_error_of_its_user(shop: Shop) -> None:
    users = [{"history": [BOUGHT], "candidates": [{"text": "a"}, {"text": " "}]}, {"history": [BOUGHT]}]
    first, second = (await shop.send(users)).json()["results"]
    assert first["error"]["code"] == "empty_text"
    assert second["items"]
    assert_problem(await shop.send(users[0]), 422, "empty_text", "/inputs/candidates/1/text")
    silent = {"history": [BOUGHT, {"text": "", "event": "view"}]}
    assert_problem(await shop.send([silent]), 422, "empty_text", "/inputs/0/history/1/text")


async def test_an_over_long_text_is_shortened_and_said_to_be(shop: Shop) -> None:
    result = await shop.ask([BOUGHT], candidates=[{"text": "a" * 100_000}, {"text": "b"}])
    assert (result["truncated"], len(result["items"])) == (True, 2)
    assert (await shop.ask([BOUGHT], candidates=[{"text": "b"}]))["truncated"] is False


async def test_an_unknown_catalogue_is_not_found(shop: Shop) -> None:
    assert_problem(await shop.send({"history": [], "catalogue": "books"}), 404, "not_found", "/inputs/catalogue")
    good, bad = (await shop.send([{"history": [BOUGHT]}, {"history": [], "catalogue": "books"}])).json()["results"]
    assert good["items"]
    assert (bad["error"]["status"], bad["error"]["code"]) == (404, "not_found")


async def test_a_hundred_thousand_candidates_are_more_than_a_body_may_hold(shop: Shop) -> None:
    refused = await shop.send({"history": [], "candidates": [{"item_id": f"item-{n}"} for n in range(100_000)]})
    assert_problem(refused, 413, "body_too_large")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_a_value_that_is_no_number_is_refused(shop: Shop, number: str) -> None:
    for given in ({"history": [event("item-a3", "rating", value=7.25)]}, {"history": [], "filter": {"price": 7.25}}):
        content = json.dumps({"inputs": given}).replace("7.25", number)
        refused = await shop.client.post("/v1/recommend", content=content, headers=JSON)
        assert refused.status_code in (400, 422), refused.text
        assert refused.json()["code"] in ("malformed_json", "invalid_request")


async def test_malformed_bodies_are_refused_as_everywhere(shop: Shop) -> None:
    for content, status, code in ((b"{", 400, "malformed_json"), (b"\xff", 400, "malformed_body")):
        assert_problem(await shop.client.post("/v1/recommend", content=content, headers=JSON), status, code)


# Together.


async def test_many_users_get_what_each_gets_alone(shop: Shop) -> None:
    users = [
        {"id": str(number), "history": [event(item.item_id), {"text": f"b{number % 7}", "event": "view"}], "top_k": 5}
        for number, item in enumerate(CATALOGUE_ITEMS)
    ]
    together = (await shop.send(users)).json()["results"]
    for user, found in zip(users, together, strict=True):
        alone = (await shop.send(user)).json()["results"][0]
        assert (ids(found), found["id"]) == (ids(alone), user["id"])
        assert scores(found) == pytest.approx(scores(alone), abs=1e-4)


async def test_texts_of_a_request_are_read_once_and_together(shop: Shop) -> None:
    user = {
        "history": [{"text": "aa", "event": "view"}, {"text": "bb", "event": "view"}],
        "candidates": [{"text": "bb"}, {"text": "aa"}, {"text": "cc"}],
    }
    await shop.send([user] * 5)
    told = shop.metrics.render().decode()
    assert 'heed_items_total{outcome="ok",task="recommend"} 3.0' in told
    assert 'heed_tokenize_seconds_count{task="recommend"} 1.0' in told


async def test_rankings_are_counted_beside_texts(shop: Shop) -> None:
    await shop.send([{"history": [BOUGHT]}, {"history": [BOUGHT], "filter": {"colour": 1}}])
    told = shop.metrics.render().decode()
    assert 'heed_items_total{outcome="ok",task="ranking"} 1.0' in told
    assert 'heed_items_total{outcome="invalid_request",task="ranking"} 1.0' in told
    assert 'heed_infer_seconds_count{task="ranking"} 2.0' in told
    assert 'heed_queue_depth{task="ranking"} 0.0' in told


async def test_a_ranking_that_cannot_be_reached_in_time_is_told_so(shop: Shop) -> None:
    headers = {"X-Request-Timeout-Ms": "1"}
    users = [{"history": [BOUGHT] * 256}] * 64
    answer = await shop.client.post("/v1/recommend", json={"inputs": users}, headers=headers)
    assert_problem(answer, 504, "deadline_exceeded")
    assert (await shop.ask([BOUGHT]))["items"]


async def test_the_event_loop_stays_free_while_rankings_run(shop: Shop) -> None:
    asking = asyncio.ensure_future(shop.send([{"history": [BOUGHT] * 256, "top_k": 100}] * 64))
    turns = 0
    while not asking.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await asking).status_code == 200
    assert turns > 500


async def test_a_service_without_rankings_says_so_and_is_replaced(shop: Shop) -> None:
    await shop.recommending.stop()
    refused = await shop.send({"history": [BOUGHT]})
    assert_problem(refused, 503, "not_ready")


class Failing(Recommender):
    """Fails, or ends its thread, by the number of items that are asked for."""

    def rank(self, *given: Any, **more: Any) -> Ranked:
        top_k = given[3]
        if top_k == 1:
            raise RuntimeError("secret of the model")
        if top_k == 2:
            raise SystemExit
        found = super().rank(*given, **more)
        return Ranked(found.order[:2], found.scores[:2], found.weights[:2])


async def test_a_ranking_that_fails_leaves_its_neighbours_unharmed(
    bundle: Bundle, tmp_path: Path, metrics: Metrics
) -> None:
    async with serving(bundle, tmp_path / "shelf", metrics, Failing) as shop:
        users = [{"history": [BOUGHT], "top_k": 1}, {"history": [], "top_k": 3}, {"history": [BOUGHT], "top_k": 4}]
        raised, popular, fewer = (await shop.send(users)).json()["results"]
        assert len(popular["items"]) == 3
        assert (raised["error"]["code"], fewer["error"]["code"]) == ("inference_failed", "inference_failed")
        assert (await shop.client.get("/healthz")).status_code == 200
        assert_problem(await shop.send({"history": [BOUGHT], "top_k": 2}), 503, "not_ready")
        assert_problem(await shop.client.get("/healthz"), 503, "not_ready")


async def test_models_tell_of_the_recommender(shop: Shop) -> None:
    (model,) = (await shop.client.get("/v1/models")).json()["models"]
    assert (model["task"], model["labels"]) == ("recommend", [])


async def test_scores_are_finite_whatever_is_ranked(shop: Shop) -> None:
    result = await shop.ask([event(item.item_id, "view") for item in CATALOGUE_ITEMS] * 6, top_k=100)
    assert np.isfinite([item["score"] for item in result["items"]]).all()
    assert all(0 <= item["score"] <= 1 for item in result["items"])
