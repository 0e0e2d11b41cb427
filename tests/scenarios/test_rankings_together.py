"""A service with many users, texts and rankings: batches, metrics, failures and changing catalogues."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import service.inference.ranking
from models.bundle import Bundle
from models.catalogue.folder import create_catalogue
from models.catalogue.items import Item
from models.ranking.bundle_files import load_recommender
from models.ranking.recommender import Ranked, Recommender
from models.runtime.offline import open_text_encoder
from service.api.query_builder import build_query
from service.errors import DeadlineExceeded
from service.inference.ranking_engine import TASK
from service.registry.catalogues import FOLDER
from service.schemas.recommend import User
from service.telemetry.metrics import Metrics
from tests.support.recommender_app import BOUGHT, Shop, event, ids, scores, serving
from tests.support.service_app import assert_problem
from tests.support.tiny_bundle import CATALOGUE, CATALOGUE_ITEMS, WIDTH

pytestmark = pytest.mark.anyio


# Catalogues.


async def test_an_empty_catalogue_recommends_nothing(shop: Shop, recommend_bundle: Bundle) -> None:
    create_catalogue(shop.folder / FOLDER / "empty", recommend_bundle.model_digest, WIDTH)
    for history in ([], [{"text": "aaa", "event": "view"}]):
        assert (await shop.ask(history, catalogue="empty"))["items"] == []
    (item,) = (await shop.ask([], catalogue="empty", candidates=[{"text": "bbb"}]))["items"]
    assert (item["text"], item["score"]) == ("bbb", 0)


async def test_an_item_added_to_a_running_service_is_recommended_immediately(shop: Shop) -> None:
    added = await shop.client.put(
        f"/v1/catalogues/{CATALOGUE}/items", json={"items": [{"item_id": "fresh", "text": "新 gift"}]}
    )
    assert added.status_code == 200, added.text
    result = await shop.ask([{"item_id": "fresh", "event": "view"}], top_k=100)
    assert "fresh" in ids(result)
    (item,) = (await shop.ask([BOUGHT], candidates=[{"item_id": "fresh"}]))["items"]
    (inline,) = (await shop.ask([BOUGHT], candidates=[{"text": "新 gift"}]))["items"]
    assert (item["text"], item["score"]) == ("新 gift", pytest.approx(inline["score"], abs=1e-4))


async def test_ids_refer_to_the_catalogue_of_the_request(shop: Shop, recommend_bundle: Bundle) -> None:
    """The ID embedding of an item of the model's own catalogue is not used for the same id in another catalogue."""
    texts = {"item-a3": "bbb", "item-b2": "ccc"}
    vectors = load_recommender(recommend_bundle).item_vectors(
        open_text_encoder(recommend_bundle).encode_texts(list(texts.values())), [None, None]
    )
    items = [Item(item_id, text) for item_id, text in texts.items()]
    create_catalogue(
        shop.folder / FOLDER / "other",
        recommend_bundle.model_digest,
        WIDTH,
        items,
        dict(zip(texts, vectors, strict=True)),
    )
    result = await shop.ask([BOUGHT], catalogue="other")
    assert {item["item_id"]: item["text"] for item in result["items"]} == texts
    assert result["catalogue"] == "other"
    text = await shop.ask(
        [{"text": "bbb", "event": "purchase"}], candidates=[{"text": "ccc", "item_id": "item-a1"}], catalogue="other"
    )
    known = await shop.ask([BOUGHT], candidates=[{"item_id": "item-b2"}], catalogue="other")
    assert text["items"][0]["score"] == pytest.approx(known["items"][0]["score"], abs=1e-4)


async def test_the_openapi_document_describes_recommendation(shop: Shop) -> None:
    document = (await shop.client.get("/openapi.json")).json()
    references = set(re.findall(r'"\$ref": ?"#/components/schemas/(\w+)"', json.dumps(document)))
    assert {"RecommendRequest", "RecommendResponse", "HistoryEvent", "Candidate"} <= references
    assert references <= set(document["components"]["schemas"])
    user, history = (document["components"]["schemas"][name]["properties"] for name in ("User", "HistoryEvent"))
    assert user["history"]["maxItems"] == 10_000
    assert user["candidates"]["anyOf"][0]["maxItems"] == 10_000
    assert user["top_k"]["maximum"] == 100
    assert history["at"]["format"] == "date-time"
    assert (history["value"]["minimum"], history["value"]["maximum"]) == (0, 5)
    statuses = set(document["paths"]["/v1/recommend"]["post"]["responses"])
    assert {"200", "404", "409", "413", "422", "503"} <= statuses


# Several users.


async def test_users_get_the_same_ranking_together_and_alone(shop: Shop) -> None:
    users = [
        {"id": str(number), "history": [event(item.item_id), {"text": f"b{number % 7}", "event": "view"}], "top_k": 5}
        for number, item in enumerate(CATALOGUE_ITEMS)
    ]
    together = (await shop.send(users)).json()["results"]
    for user, result in zip(users, together, strict=True):
        alone = (await shop.send(user)).json()["results"][0]
        assert (ids(result), result["id"]) == (ids(alone), user["id"])
        assert scores(result) == pytest.approx(scores(alone), abs=1e-4)


async def test_texts_of_a_request_are_encoded_once_and_together(shop: Shop) -> None:
    user = {
        "history": [{"text": "aa", "event": "view"}, {"text": "bb", "event": "view"}],
        "candidates": [{"text": "bb"}, {"text": "aa"}, {"text": "cc"}],
    }
    await shop.send([user] * 5)
    metrics = shop.metrics.render().decode()
    assert 'heed_items_total{outcome="ok",task="recommend"} 3.0' in metrics
    assert 'heed_tokenize_seconds_count{task="recommend"} 1.0' in metrics


async def test_rankings_are_counted_apart_from_texts(shop: Shop) -> None:
    await shop.send([{"history": [BOUGHT]}, {"history": [BOUGHT], "filter": {"colour": 1}}])
    metrics = shop.metrics.render().decode()
    assert 'heed_items_total{outcome="ok",task="ranking"} 1.0' in metrics
    assert 'heed_items_total{outcome="invalid_request",task="ranking"} 1.0' in metrics
    assert 'heed_infer_seconds_count{task="ranking"} 2.0' in metrics
    assert 'heed_queue_depth{task="ranking"} 0.0' in metrics


async def test_a_ranking_past_its_deadline_gets_deadline_exceeded(shop: Shop) -> None:
    headers = {"X-Request-Timeout-Ms": "1"}
    users = [{"history": [BOUGHT] * 256}] * 64
    answer = await shop.client.post("/v1/recommend", json={"inputs": users}, headers=headers)
    assert_problem(answer, 504, "deadline_exceeded")
    assert (await shop.ask([BOUGHT]))["items"]


async def test_rankings_do_not_block_the_event_loop(shop: Shop) -> None:
    request = asyncio.ensure_future(shop.send([{"history": [BOUGHT] * 256, "top_k": 100}] * 64))
    turns = 0
    while not request.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await request).status_code == 200
    assert turns > 500


class RecordingRecommender(Recommender):
    """A recommender that records the threads of its calls in `threads` and waits while `gate` is closed."""

    threads: ClassVar[set[str]] = set()
    gate: ClassVar[threading.Event] = threading.Event()

    def rank(self, *args: Any, **kwargs: Any) -> Ranked:
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(60)
        return super().rank(*args, **kwargs)


async def test_only_short_rankings_run_in_the_event_loop(
    recommend_bundle: Bundle, tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop_thread = threading.current_thread().name
    RecordingRecommender.gate.set()
    async with serving(recommend_bundle, tmp_path / "shelf", metrics, RecordingRecommender) as shop:
        short, long = {"history": [BOUGHT]}, {"history": [BOUGHT] * 256, "top_k": 100}
        texts = {**short, "candidates": [{"text": f"a{number}"} for number in range(60)]}
        few_texts = {**texts, "candidates": texts["candidates"][:9]}
        inline_requests, queued_requests = ([short], [short] * 4, [few_texts]), ([long], [short] * 64, [texts])
        for users, thread in (
            *((users, loop_thread) for users in inline_requests),
            *((users, TASK) for users in queued_requests),
        ):
            RecordingRecommender.threads.clear()
            assert (await shop.send(users)).status_code == 200
            assert RecordingRecommender.threads == {thread}
        with monkeypatch.context() as patched:
            patched.setattr(service.inference.ranking, "MIN_INDEX_ROWS", 0)
            RecordingRecommender.threads.clear()
            assert (await shop.send([short])).status_code == 200
            assert RecordingRecommender.threads == {TASK}, "a large catalogue"
        RecordingRecommender.threads.clear()
        RecordingRecommender.gate.clear()
        first = asyncio.ensure_future(shop.send([long]))
        while not RecordingRecommender.threads:
            await asyncio.sleep(0)
        second = asyncio.ensure_future(shop.send([short]))
        while 'heed_queue_depth{task="ranking"} 1.0' not in shop.metrics.render().decode():
            await asyncio.sleep(0)
        RecordingRecommender.gate.set()
        assert [response.status_code for response in await asyncio.gather(first, second)] == [200, 200]
        assert RecordingRecommender.threads == {TASK}, "never beside the other thread"


async def test_a_short_ranking_past_its_deadline_does_not_run(shop: Shop) -> None:
    user, snapshot = User.model_validate({"history": [BOUGHT]}), await shop.catalogues.snapshot(CATALOGUE)
    (outcome,), _ = await shop.ranking_engine.rank([build_query(user, snapshot, time.time())], time.monotonic() - 1)
    assert isinstance(outcome, DeadlineExceeded)


async def test_projections_are_cached_before_the_first_ranking(
    shop: Shop, recommend_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def recorded_project(self: Recommender, *args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return project(self, *args)

    project = Recommender.project
    monkeypatch.setattr(Recommender, "project", recorded_project)
    added = {"items": [{"item_id": "fresh", "text": "新 gift"}]}
    assert (await shop.client.put(f"/v1/catalogues/{CATALOGUE}/items", json=added)).status_code == 200
    assert "fresh" in ids(await shop.ask([BOUGHT], top_k=100))
    assert threads
    assert threading.current_thread().name not in threads


async def test_a_service_whose_ranking_engine_stopped_is_not_ready(shop: Shop) -> None:
    await shop.ranking_engine.stop()
    refused = await shop.send({"history": [BOUGHT]})
    assert_problem(refused, 503, "not_ready")


class FailingRecommender(Recommender):
    """A recommender that fails for a `top_k` of 1, ends its thread for 2, and returns two items otherwise."""

    def rank(self, *args: Any, **kwargs: Any) -> Ranked:
        top_k = args[3]
        if top_k == 1:
            raise RuntimeError("secret of the model")
        if top_k == 2:
            raise SystemExit
        ranked = super().rank(*args, **kwargs)
        return Ranked(ranked.order[:2], ranked.scores[:2], ranked.weights[:2])


async def test_a_failing_ranking_does_not_affect_the_others(
    recommend_bundle: Bundle, tmp_path: Path, metrics: Metrics
) -> None:
    async with serving(recommend_bundle, tmp_path / "shelf", metrics, FailingRecommender) as shop:
        users = [{"history": [BOUGHT], "top_k": 1}, {"history": [], "top_k": 3}, {"history": [BOUGHT], "top_k": 4}]
        raised, popular, fewer = (await shop.send(users)).json()["results"]
        assert len(popular["items"]) == 3
        assert (raised["error"]["code"], fewer["error"]["code"]) == ("inference_failed", "inference_failed")
        assert (await shop.client.get("/healthz")).status_code == 200
        assert_problem(await shop.send({"history": [BOUGHT], "top_k": 2}), 503, "not_ready")
        assert_problem(await shop.client.get("/healthz"), 503, "not_ready")


async def test_the_models_route_lists_the_recommender(shop: Shop) -> None:
    (model,) = (await shop.client.get("/v1/models")).json()["models"]
    assert (model["task"], model["labels"]) == ("recommend", [])


async def test_all_scores_are_finite(shop: Shop) -> None:
    result = await shop.ask([event(item.item_id, "view") for item in CATALOGUE_ITEMS] * 6, top_k=100)
    assert np.isfinite([item["score"] for item in result["items"]]).all()
    assert all(0 <= item["score"] <= 1 for item in result["items"])
