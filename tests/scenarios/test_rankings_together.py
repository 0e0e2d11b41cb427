"""Many users, texts and rankings in one service: batches, metrics, failures and catalogues that change."""

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


async def test_an_empty_catalogue_has_nothing_to_recommend(shop: Shop, recommend_bundle: Bundle) -> None:
    create_catalogue(shop.folder / FOLDER / "empty", recommend_bundle.model_digest, WIDTH)
    for history in ([], [{"text": "aaa", "event": "view"}]):
        assert (await shop.ask(history, catalogue="empty"))["items"] == []
    (item,) = (await shop.ask([], catalogue="empty", candidates=[{"text": "bbb"}]))["items"]
    assert (item["text"], item["score"]) == ("bbb", 0)


async def test_an_item_added_to_the_running_service_is_recommended_at_once(shop: Shop) -> None:
    added = await shop.client.put(
        f"/v1/catalogues/{CATALOGUE}/items", json={"items": [{"item_id": "fresh", "text": "新 gift"}]}
    )
    assert added.status_code == 200, added.text
    result = await shop.ask([{"item_id": "fresh", "event": "view"}], top_k=100)
    assert "fresh" in ids(result)
    (item,) = (await shop.ask([BOUGHT], candidates=[{"item_id": "fresh"}]))["items"]
    (sent,) = (await shop.ask([BOUGHT], candidates=[{"text": "新 gift"}]))["items"]
    assert (item["text"], item["score"]) == ("新 gift", pytest.approx(sent["score"], abs=1e-4))


async def test_ids_mean_the_items_of_the_catalogue_that_is_named(shop: Shop, recommend_bundle: Bundle) -> None:
    """What was learned of an id of the model's own catalogue does not count for the same id of another."""
    texts = {"item-a3": "bbb", "item-b2": "ccc"}
    vectors = load_recommender(recommend_bundle).item_vectors(
        open_text_encoder(recommend_bundle).encode_texts(list(texts.values())), [None, None]
    )
    entries = [Item(item_id, text) for item_id, text in texts.items()]
    create_catalogue(
        shop.folder / FOLDER / "other",
        recommend_bundle.model_digest,
        WIDTH,
        entries,
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


async def test_the_openapi_document_has_all_that_recommendation_takes_and_gives(shop: Shop) -> None:
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


class Elsewhere(Recommender):
    """Tells by `where` in which threads it ranked; waits while `gate` is shut."""

    where: ClassVar[set[str]] = set()
    gate: ClassVar[threading.Event] = threading.Event()

    def rank(self, *given: Any, **more: Any) -> Ranked:
        self.where.add(threading.current_thread().name)
        assert self.gate.wait(60)
        return super().rank(*given, **more)


async def test_a_short_ranking_is_made_in_the_event_loop_and_others_in_their_thread(
    recommend_bundle: Bundle, tmp_path: Path, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = threading.current_thread().name
    Elsewhere.gate.set()
    async with serving(recommend_bundle, tmp_path / "shelf", metrics, Elsewhere) as shop:
        short, long = {"history": [BOUGHT]}, {"history": [BOUGHT] * 256, "top_k": 100}
        texts = {**short, "candidates": [{"text": f"a{number}"} for number in range(60)]}
        few = {**texts, "candidates": texts["candidates"][:9]}
        at_once, apart = ([short], [short] * 4, [few]), ([long], [short] * 64, [texts])
        for users, where in (*((one, {here}) for one in at_once), *((one, {TASK}) for one in apart)):
            Elsewhere.where.clear()
            assert (await shop.send(users)).status_code == 200
            assert Elsewhere.where == where
        with monkeypatch.context() as patched:
            patched.setattr(service.inference.ranking, "MIN_INDEX_ROWS", 0)
            Elsewhere.where.clear()
            assert (await shop.send([short])).status_code == 200
            assert Elsewhere.where == {TASK}, "of a large catalogue"
        Elsewhere.where.clear()
        Elsewhere.gate.clear()
        first = asyncio.ensure_future(shop.send([long]))
        while not Elsewhere.where:
            await asyncio.sleep(0)
        second = asyncio.ensure_future(shop.send([short]))
        while 'heed_queue_depth{task="ranking"} 1.0' not in shop.metrics.render().decode():
            await asyncio.sleep(0)
        Elsewhere.gate.set()
        assert [one.status_code for one in await asyncio.gather(first, second)] == [200, 200]
        assert Elsewhere.where == {TASK}, "not beside the other thread"


async def test_a_short_ranking_that_comes_too_late_is_not_made(shop: Shop) -> None:
    user, snapshot = User.model_validate({"history": [BOUGHT]}), await shop.catalogues.snapshot(CATALOGUE)
    (outcome,), _ = await shop.ranking_engine.rank([build_query(user, snapshot, time.time())], time.monotonic() - 1)
    assert isinstance(outcome, DeadlineExceeded)


async def test_what_rankings_keep_of_a_catalogue_is_made_before_the_first(
    shop: Shop, recommend_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def told(self: Recommender, *given: Any) -> Any:
        made.append(threading.current_thread().name)
        return project(self, *given)

    project = Recommender.project
    monkeypatch.setattr(Recommender, "project", told)
    added = {"items": [{"item_id": "fresh", "text": "新 gift"}]}
    assert (await shop.client.put(f"/v1/catalogues/{CATALOGUE}/items", json=added)).status_code == 200
    assert "fresh" in ids(await shop.ask([BOUGHT], top_k=100))
    assert made
    assert threading.current_thread().name not in made


async def test_a_service_without_rankings_says_so_and_is_replaced(shop: Shop) -> None:
    await shop.ranking_engine.stop()
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
    recommend_bundle: Bundle, tmp_path: Path, metrics: Metrics
) -> None:
    async with serving(recommend_bundle, tmp_path / "shelf", metrics, Failing) as shop:
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
