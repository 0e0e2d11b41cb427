"""Recommendations explained over HTTP: which items of a history speak for a recommended one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import Bundle
from models.ranking.events import MAX_EVENTS, History
from models.ranking.recommender import Recommender
from service.schemas.explain import MAX_EXPLAINED
from service.schemas.explain_recommend import ExplainRecommendResponse
from service.telemetry.metrics import Metrics
from tests.support import recommender_app as shops
from tests.support.recommender_app import BOUGHT, Shop, event, scores
from tests.support.service_app import JSON, assert_problem

pytestmark = pytest.mark.anyio

PATH = "/v1/explain/recommend"
MIXED = [
    event("item-a3"),
    event("item-b2", "view"),
    event("item-a3", "cart"),
    {"text": "手机", "event": "click"},
    event("item-c1", "dislike"),
]


async def send(shop: Shop, inputs: Any, **more: Any) -> httpx.Response:
    return await shop.client.post(PATH, json={"inputs": inputs, **more})


async def explain(shop: Shop, user: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The one result of one user."""
    answer = await send(shop, user, **more)
    assert answer.status_code == 200, answer.text
    ExplainRecommendResponse.model_validate_json(answer.content)
    (result,) = answer.json()["results"]
    return dict(result)


# What is explained.


async def test_the_first_ranked_item_is_explained_with_the_score_that_it_is_served_with(shop: Shop) -> None:
    user: dict[str, Any] = {"history": MIXED, "filter": {"price": {"gt": 2}}, "exclude_history": True, "id": "u-9"}
    served = await shop.ask(**user)
    found = await explain(shop, user)
    first = {name: served["items"][0][name] for name in ("item_id", "candidate_index", "text")}
    assert found["target"] == {**first, "score": pytest.approx(served["items"][0]["score"], abs=1e-6)}
    assert (found["method"], found["id"], found["catalogue"]) == ("two_sided_occlusion", "u-9", "letters")
    assert (found["history_used"], found["history_dropped"], found["history_skipped"]) == (5, 0, 0)
    assert [(one["history_indexes"], one["item_id"], one["text"]) for one in found["history"]] == [
        ([0, 2], "item-a3", "aaa"),
        ([1], "item-b2", "bb"),
        ([3], None, "手机"),
        ([4], "item-c1", "c"),
    ]
    assert all(one["weight"] for one in found["history"])


@pytest.mark.parametrize("target", ["item-a3", "item-c1", "item-上5"])
async def test_occlusion_is_what_asking_without_the_item_changes(shop: Shop, target: str) -> None:
    served = scores(await shop.ask(MIXED, top_k=100))[target]
    found = await explain(shop, {"history": MIXED, "target": target}, method="occlusion")
    assert found["target"]["score"] == pytest.approx(served, abs=1e-6)
    for one in found["history"]:
        less = [event for place, event in enumerate(MIXED) if place not in one["history_indexes"]]
        assert one["weight"] == pytest.approx(served - scores(await shop.ask(less, top_k=100))[target], abs=1e-5)


async def test_what_was_disliked_speaks_against_what_is_like_it(shop: Shop) -> None:
    history = [event("item-a3", "dislike"), event("item-b2")]
    for method in ("two_sided_occlusion", "occlusion", "shapley", "attention"):
        found = await explain(shop, {"history": history, "target": "item-a3"}, method=method)
        weights = {one["item_id"]: one["weight"] for one in found["history"]}
        assert weights["item-a3"] < 0, method
        assert found["method"] == method


async def test_attention_weighs_what_because_names(shop: Shop) -> None:
    served = (await shop.ask([BOUGHT, event("item-b2")]))["items"][0]
    found = await explain(shop, {"history": [BOUGHT, event("item-b2")]}, method="attention")
    weights = {one["history_indexes"][0]: one["weight"] for one in found["history"]}
    assert {reason["history_index"]: pytest.approx(reason["weight"]) for reason in served["reasons"]}.items() <= (
        weights.items()
    )


async def test_events_out_of_order_keep_their_places(shop: Shop) -> None:
    history = [event("item-b2", days_ago=1), event("item-a3", days_ago=9), event("item-b2", days_ago=5)]
    found = await explain(shop, {"history": history})
    assert [(one["item_id"], one["history_indexes"]) for one in found["history"]] == [
        ("item-a3", [1]),
        ("item-b2", [0, 2]),
    ]


async def test_a_candidate_is_explained_by_its_id_and_where_it_came(shop: Shop) -> None:
    candidates = [{"text": "bbbb"}, {"item_id": "mine", "text": "aaaa"}, {"item_id": "item-c2"}]
    user = {"history": MIXED, "candidates": candidates}
    served = await shop.ask(**user)
    for item_id, index in (("mine", 1), ("item-c2", 2)):
        target = (await explain(shop, {**user, "target": item_id}))["target"]
        assert (target["item_id"], target["candidate_index"]) == (item_id, index)
        assert target["score"] == pytest.approx(scores(served)[item_id], abs=1e-6)
    alone = await explain(shop, user | {"candidates": candidates[:1]})
    assert (alone["target"]["item_id"], alone["target"]["text"]) == (None, "bbbb")


async def test_one_user_can_be_asked_about_several_items_at_once(shop: Shop) -> None:
    targets = ["item-a1", "item-b5", None]
    answer = await send(shop, [{"history": MIXED, "target": target} for target in targets])
    found = answer.json()["results"]
    assert [one["target"]["item_id"] for one in found[:2]] == targets[:2]
    for one, target in zip(found, targets, strict=True):
        assert one == await explain(shop, {"history": MIXED, "target": target})


# What cannot be.


@pytest.mark.parametrize(
    ("user", "code", "pointer"),
    [
        ({"history": []}, "invalid_request", "/inputs/history"),
        ({"history": [event("nope")], "on_unknown": "skip"}, "invalid_request", "/inputs/history"),
        ({"history": [event("nope")]}, "unknown_item", "/inputs/history/0"),
        ({"history": [BOUGHT], "target": "nope"}, "unknown_item", "/inputs/target"),
        (
            {"history": [BOUGHT], "target": "item-a3", "candidates": [{"item_id": "item-a4"}]},
            "unknown_item",
            "/inputs/target",
        ),
        ({"history": [BOUGHT], "filter": {"price": {"gt": 99}}}, "invalid_request", "/inputs"),
        ({"history": [BOUGHT], "filter": {"weight": 3}}, "invalid_request", "/inputs/filter/weight"),
        ({"history": [BOUGHT], "target": 3}, "invalid_request", "/inputs/target"),
        ({"history": [BOUGHT], "target": ""}, "invalid_request", "/inputs/target"),
        ({"history": [{"text": " ", "event": "view"}]}, "empty_text", "/inputs/history/0/text"),
        ({"history": [BOUGHT] * 10_001}, "invalid_request", "/inputs/history"),
        ("item-a3", "invalid_request", "/inputs"),
        ([], "invalid_request", "/inputs"),
        ([{"history": [BOUGHT]}] * 65, "invalid_request", "/inputs"),
    ],
)
async def test_bad_input_is_named(shop: Shop, user: Any, code: str, pointer: str) -> None:
    assert_problem(await send(shop, user), 422, code, pointer)


@pytest.mark.parametrize("more", [{"method": "rollout"}, {"method": 1}, {"layers": [0]}, {"target": "item-a3"}])
async def test_bad_ways_to_explain_are_named(shop: Shop, more: dict[str, Any]) -> None:
    assert_problem(await send(shop, {"history": [BOUGHT]}, **more), 422, "invalid_request", f"/{next(iter(more))}")


async def test_too_much_is_refused_with_the_limit(shop: Shop) -> None:
    refused = await send(shop, [{"history": [BOUGHT]}] * (MAX_EXPLAINED + 1))
    assert_problem(refused, 413, "explanation_too_large", "/inputs")
    assert str(MAX_EXPLAINED) in refused.json()["detail"]


async def test_one_bad_user_leaves_its_neighbours_unharmed(shop: Shop) -> None:
    good, cold, bad = (
        await send(shop, [{"history": [BOUGHT]}, {"history": [], "id": "x"}, {"history": [BOUGHT], "target": "nope"}])
    ).json()["results"]
    assert good["history"][0]["item_id"] == "item-a3"
    assert (cold["error"]["code"], cold["id"]) == ("invalid_request", "x")
    assert "popularity" in cold["error"]["detail"]
    assert (bad["error"]["code"], bad["error"]["detail"]) == ("unknown_item", "The target is not in letters.")


async def test_a_catalogue_that_is_not_there_is_named(shop: Shop) -> None:
    assert_problem(await send(shop, {"history": [BOUGHT], "catalogue": "nope"}), 404, "not_found", "/inputs/catalogue")


async def test_malformed_bodies_are_refused_as_everywhere(shop: Shop) -> None:
    for content, status, code in ((b"{", 400, "malformed_json"), (b"\xff", 400, "malformed_body")):
        assert_problem(await shop.client.post(PATH, content=content, headers=JSON), status, code)


async def test_of_ten_thousand_events_the_newest_are_weighed(shop: Shop) -> None:
    history = [event("item-a3"), event("item-b2")] * 4_872 + [event("item-c1")] * MAX_EVENTS
    found = await explain(shop, {"history": history})
    assert (found["history_used"], found["history_dropped"]) == (MAX_EVENTS, 9_744)
    assert [one["item_id"] for one in found["history"]] == ["item-c1"]
    assert found["history"][0]["history_indexes"] == list(range(9_744, 10_000))


class Broken(Recommender):
    """Ranks, and then knows no score."""

    def score(self, histories: Sequence[History], vectors: Any, items: Any, trained: Any = None) -> NDArray[np.float32]:
        return np.full((len(histories), len(vectors)), np.nan, np.float32)


async def test_a_model_that_fails_on_a_history_fails_that_item(
    recommend_bundle: Bundle, tmp_path: Path, metrics: Metrics
) -> None:
    async with shops.serving(recommend_bundle, tmp_path / "shelf", metrics, Broken) as shop:
        assert_problem(await send(shop, {"history": [BOUGHT]}), 500, "inference_failed")
        assert (await explain(shop, {"history": [BOUGHT]}, method="attention"))["history"]


async def test_what_takes_too_long_is_given_up(shop: Shop) -> None:
    long = {"history": [event(f"item-{letter}{n}") for letter in "abc" for n in range(1, 9)] * 10}
    answer = await shop.client.post(
        PATH, json={"inputs": [long] * 16, "method": "shapley"}, headers={"X-Request-Timeout-Ms": "300"}
    )
    found = [answer.status_code] if answer.status_code != 200 else [answer.json()["results"][-1]["error"]["status"]]
    assert found == [504]
    await asyncio.wait_for(explain(shop, {"history": [BOUGHT]}), 60)
