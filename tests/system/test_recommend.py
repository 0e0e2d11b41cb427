"""Recommendations from a running service of two replicas: IDs and texts, many connections, an edited catalogue."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.local_service import Reply, Service, free_port, load, metric_sum, post_all
from tests.support.tiny_bundle import CATALOGUE, CATALOGUE_ITEMS, tiny_recommend_bundle

PATH = "/v1/recommend"
BOUGHT = {"item_id": "item-a3", "event": "purchase"}


@pytest.fixture(scope="module")
def serving(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    recommend = tiny_recommend_bundle(tmp_path_factory.mktemp("items"))
    environment = {"HEED_RECOMMEND_BUNDLE": str(recommend), "HEED_DATA_DIR": str(tmp_path_factory.mktemp("data"))}
    started = Service(bundle, free_port(), environment=environment)
    yield started
    started.stop()


def test_items_are_ranked_for_ids_and_texts_of_both_languages(serving: Service) -> None:
    history = [BOUGHT, {"text": "手机质量好", "event": "view"}, {"text": "a phone", "event": "cart"}]
    reply = serving.client.post({"inputs": {"history": history, "top_k": 40}}, PATH)
    assert reply.status == 200, reply.body
    (result,) = reply.json["results"]
    assert {item["item_id"] for item in result["items"]} == {item.item_id for item in CATALOGUE_ITEMS}
    candidates = [{"item_id": "item-上2"}, {"text": "快递"}, {"text": "bbb"}]
    (result,) = serving.client.post({"inputs": {"history": history, "candidates": candidates}}, PATH).json["results"]
    assert sorted(item["candidate_index"] for item in result["items"]) == [0, 1, 2]
    models = serving.client.get("/v1/models").json["models"]
    assert [model["task"] for model in models] == ["sentiment", "recommend"]


def test_concurrent_callers_get_their_rankings(serving: Service) -> None:
    users = [{"id": item.item_id, "history": [{"item_id": item.item_id, "event": "cart"}]} for item in CATALOGUE_ITEMS]
    alone = {user["id"]: names(serving.client.post({"inputs": user}, PATH)) for user in users}
    assert len(set(alone.values())) > 1
    before = metric_sum(serving.client, "heed_items_total", task="ranking", outcome="ok")
    with load(serving.port, 16, lambda index: {"inputs": users[index % len(users)]}, PATH) as outcomes:
        while len(outcomes) < 400:
            time.sleep(0.05)
    replies = [reply for reply in outcomes if isinstance(reply, Reply)]
    assert len(replies) == len(outcomes)
    assert {reply.status for reply in replies} == {200}
    assert all(names(reply) == alone[reply.json["results"][0]["id"]] for reply in replies)
    assert metric_sum(serving.client, "heed_items_total", task="ranking", outcome="ok") == before + len(outcomes)


def test_recommendations_are_explained(serving: Service) -> None:
    history = [BOUGHT, {"text": "手机质量好", "event": "view"}]
    (recommended,) = serving.client.post({"inputs": {"history": history, "top_k": 1}}, PATH).json["results"]
    reply = serving.client.post({"inputs": {"history": history}}, "/v1/explain/recommend")
    assert reply.status == 200, reply.body
    (result,) = reply.json["results"]
    assert result["target"]["item_id"] == recommended["items"][0]["item_id"]
    assert [item["history_indexes"] for item in result["history"]] == [[0], [1]]


def test_an_edit_through_one_replica_reaches_all(serving: Service) -> None:
    body = json.dumps({"items": [{"item_id": "fresh", "text": "好 gift"}]}).encode()
    path = f"/v1/catalogues/{CATALOGUE}/items"
    assert serving.client.send("PUT", path, body, {"Content-Type": "application/json"}).status == 200
    request = {"inputs": {"history": [{"item_id": "fresh", "event": "view"}], "top_k": 1}}
    assert {reply.status for reply in post_all(serving.port, [request] * 32, 8, PATH)} == {200}


def test_bad_requests_get_problems(serving: Service) -> None:
    reply = serving.client.post({"inputs": {"history": [{"item_id": "nope", "event": "view"}]}}, PATH)
    assert (reply.status, reply.json["code"], reply.json["pointer"]) == (422, "unknown_item", "/inputs/history/0")
    reply = serving.client.post({"inputs": {"history": [], "catalogue": "books"}}, PATH)
    assert (reply.status, reply.json["code"]) == (404, "not_found")


def names(reply: Reply) -> tuple[str, ...]:
    (result,) = reply.json["results"]
    return tuple(item["item_id"] for item in result["items"])
