"""Explanations of recommendations over HTTP."""

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
    """Return the result of a single user."""
    answer = await send(shop, user, **more)
    assert answer.status_code == 200, answer.text
    ExplainRecommendResponse.model_validate_json(answer.content)
    (result,) = answer.json()["results"]
    return dict(result)


# Explanations.


async def test_the_first_item_is_explained_with_its_served_score(shop: Shop) -> None:
    user: dict[str, Any] = {"history": MIXED, "filter": {"price": {"gt": 2}}, "exclude_history": True, "id": "u-9"}
    served = await shop.ask(**user)
    result = await explain(shop, user)
    first = {name: served["items"][0][name] for name in ("item_id", "candidate_index", "text")}
    assert result["target"] == {**first, "score": pytest.approx(served["items"][0]["score"], abs=1e-6)}
    assert (result["method"], result["id"], result["catalogue"]) == ("two_sided_occlusion", "u-9", "letters")
    assert (result["history_used"], result["history_dropped"], result["history_skipped"]) == (5, 0, 0)
    assert [(item["history_indexes"], item["item_id"], item["text"]) for item in result["history"]] == [
        ([0, 2], "item-a3", "aaa"),
        ([1], "item-b2", "bb"),
        ([3], None, "手机"),
        ([4], "item-c1", "c"),
    ]
    assert all(item["weight"] for item in result["history"])


@pytest.mark.parametrize("target", ["item-a3", "item-c1", "item-上5"])
async def test_occlusion_is_the_change_without_the_item(shop: Shop, target: str) -> None:
    served = scores(await shop.ask(MIXED, top_k=100))[target]
    result = await explain(shop, {"history": MIXED, "target": target}, method="occlusion")
    assert result["target"]["score"] == pytest.approx(served, abs=1e-6)
    for item in result["history"]:
        less = [event for index, event in enumerate(MIXED) if index not in item["history_indexes"]]
        assert item["weight"] == pytest.approx(served - scores(await shop.ask(less, top_k=100))[target], abs=1e-5)


async def test_disliked_items_speak_against_similar_items(shop: Shop) -> None:
    history = [event("item-a3", "dislike"), event("item-b2")]
    for method in ("two_sided_occlusion", "occlusion", "shapley", "attention"):
        result = await explain(shop, {"history": history, "target": "item-a3"}, method=method)
        weights = {item["item_id"]: item["weight"] for item in result["history"]}
        assert weights["item-a3"] < 0, method
        assert result["method"] == method


async def test_the_largest_attention_weights_are_the_reasons(shop: Shop) -> None:
    served = (await shop.ask([BOUGHT, event("item-b2")]))["items"][0]
    result = await explain(shop, {"history": [BOUGHT, event("item-b2")]}, method="attention")
    weights = {item["history_indexes"][0]: item["weight"] for item in result["history"]}
    assert {reason["history_index"]: pytest.approx(reason["weight"]) for reason in served["reasons"]}.items() <= (
        weights.items()
    )


async def test_indexes_of_unsorted_events_are_those_of_the_request(shop: Shop) -> None:
    history = [event("item-b2", days_ago=1), event("item-a3", days_ago=9), event("item-b2", days_ago=5)]
    result = await explain(shop, {"history": history})
    assert [(item["item_id"], item["history_indexes"]) for item in result["history"]] == [
        ("item-a3", [1]),
        ("item-b2", [0, 2]),
    ]


async def test_a_candidate_is_explained_with_its_id_and_index(shop: Shop) -> None:
    candidates = [{"text": "bbbb"}, {"item_id": "mine", "text": "aaaa"}, {"item_id": "item-c2"}]
    user = {"history": MIXED, "candidates": candidates}
    served = await shop.ask(**user)
    for item_id, index in (("mine", 1), ("item-c2", 2)):
        target = (await explain(shop, {**user, "target": item_id}))["target"]
        assert (target["item_id"], target["candidate_index"]) == (item_id, index)
        assert target["score"] == pytest.approx(scores(served)[item_id], abs=1e-6)
    alone = await explain(shop, user | {"candidates": candidates[:1]})
    assert (alone["target"]["item_id"], alone["target"]["text"]) == (None, "bbbb")


async def test_a_user_can_come_with_several_targets(shop: Shop) -> None:
    targets = ["item-a1", "item-b5", None]
    answer = await send(shop, [{"history": MIXED, "target": target} for target in targets])
    results = answer.json()["results"]
    assert [result["target"]["item_id"] for result in results[:2]] == targets[:2]
    for result, target in zip(results, targets, strict=True):
        assert result == await explain(shop, {"history": MIXED, "target": target})


# Refusals.


@pytest.mark.slow
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
async def test_bad_input_has_a_pointer(shop: Shop, user: Any, code: str, pointer: str) -> None:
    assert_problem(await send(shop, user), 422, code, pointer)


@pytest.mark.parametrize("more", [{"method": "rollout"}, {"method": 1}, {"layers": [0]}, {"target": "item-a3"}])
async def test_a_bad_method_has_a_pointer(shop: Shop, more: dict[str, Any]) -> None:
    assert_problem(await send(shop, {"history": [BOUGHT]}, **more), 422, "invalid_request", f"/{next(iter(more))}")


async def test_too_large_a_request_is_refused_with_the_limit(shop: Shop) -> None:
    refused = await send(shop, [{"history": [BOUGHT]}] * (MAX_EXPLAINED + 1))
    assert_problem(refused, 413, "explanation_too_large", "/inputs")
    assert str(MAX_EXPLAINED) in refused.json()["detail"]


async def test_a_bad_user_does_not_affect_the_rest(shop: Shop) -> None:
    good, cold, bad = (
        await send(shop, [{"history": [BOUGHT]}, {"history": [], "id": "x"}, {"history": [BOUGHT], "target": "nope"}])
    ).json()["results"]
    assert good["history"][0]["item_id"] == "item-a3"
    assert (cold["error"]["code"], cold["id"]) == ("invalid_request", "x")
    assert "popularity" in cold["error"]["detail"]
    assert (bad["error"]["code"], bad["error"]["detail"]) == ("unknown_item", "The target is not in letters.")


async def test_an_unknown_catalogue_has_a_pointer(shop: Shop) -> None:
    assert_problem(await send(shop, {"history": [BOUGHT], "catalogue": "nope"}), 404, "not_found", "/inputs/catalogue")


async def test_malformed_bodies_are_refused(shop: Shop) -> None:
    for content, status, code in ((b"{", 400, "malformed_json"), (b"\xff", 400, "malformed_body")):
        assert_problem(await shop.client.post(PATH, content=content, headers=JSON), status, code)


async def test_the_newest_of_ten_thousand_events_are_explained(shop: Shop) -> None:
    history = [event("item-a3"), event("item-b2")] * 4_872 + [event("item-c1")] * MAX_EVENTS
    result = await explain(shop, {"history": history})
    assert (result["history_used"], result["history_dropped"]) == (MAX_EVENTS, 9_744)
    assert [item["item_id"] for item in result["history"]] == ["item-c1"]
    assert result["history"][0]["history_indexes"] == list(range(9_744, 10_000))


class Broken(Recommender):
    """A recommender that ranks items and then fails to score a history."""

    def score(self, histories: Sequence[History], vectors: Any, items: Any, trained: Any = None) -> NDArray[np.float32]:
        return np.full((len(histories), len(vectors)), np.nan, np.float32)


async def test_a_model_that_fails_on_a_history_fails_that_item(
    recommend_bundle: Bundle, tmp_path: Path, metrics: Metrics
) -> None:
    async with shops.serving(recommend_bundle, tmp_path / "data", metrics, Broken) as shop:
        assert_problem(await send(shop, {"history": [BOUGHT]}), 500, "inference_failed")
        assert (await explain(shop, {"history": [BOUGHT]}, method="attention"))["history"]


async def test_a_slow_explanation_times_out(shop: Shop) -> None:
    long = {"history": [event(f"item-{letter}{n}") for letter in "abc" for n in range(1, 9)] * 10}
    answer = await shop.client.post(
        PATH, json={"inputs": [long] * 16, "method": "shapley"}, headers={"X-Request-Timeout-Ms": "300"}
    )
    result = [answer.status_code] if answer.status_code != 200 else [answer.json()["results"][-1]["error"]["status"]]
    assert result == [504]
    await asyncio.wait_for(explain(shop, {"history": [BOUGHT]}), 60)
