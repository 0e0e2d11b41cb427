"""Cold items over HTTP: they share the scores of similar items, in the catalogue and as a text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import logit

from models.bundle import MANIFEST, Bundle, file_digest, load_bundle
from models.catalogue.folder import create_catalogue
from models.catalogue.items import Item
from models.prediction.normalize import l2_normalize
from models.ranking.bundle_files import WEIGHTS, load_own_catalogue
from models.ranking.cold_start import NEAREST_WEIGHTS, find_nearest_items
from service.registry.catalogues import FOLDER
from service.telemetry.metrics import Metrics
from tests.support import recommender_app as shops
from tests.support.recommender_app import BOUGHT, Shop, ids, scores
from tests.support.service_app import assert_problem
from tests.support.tiny_bundle import CATALOGUE, CATALOGUE_ITEMS, WIDTH, tiny_recommend_bundle

pytestmark = pytest.mark.anyio

ALWAYS, TAKEN = 1.5, 1.5
SLOPE = 0.5
"""The parameters of the tiny bundle's calibration."""


@pytest.fixture
async def cold_start_shop(tmp_path: Path, metrics: Metrics) -> AsyncIterator[Shop]:
    """A shop like `shop`, with a bundle that has cold-start weights."""
    path = tiny_recommend_bundle(tmp_path)
    weights, vectors = load_file(path / WEIGHTS), load_own_catalogue(load_bundle(path))[2]
    known = np.ones(len(vectors), np.bool_)
    weights |= {"newcomers": np.asarray([ALWAYS, 0.0, TAKEN], np.float32)}
    weights |= {"kin": find_nearest_items(l2_normalize(vectors - weights["ids.weight"]), known)}
    save_file(weights, path / WEIGHTS)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][WEIGHTS] = file_digest(path / WEIGHTS)
    (path / MANIFEST).write_text(json.dumps(manifest))
    async with shops.serving(load_bundle(path), tmp_path / "other", metrics) as running:
        yield running


async def test_a_cold_item_scores_alike_in_the_catalogue_and_as_a_text(shop: Shop, cold_start_shop: Shop) -> None:
    candidates = [{"item_id": "new", "text": "cccc"}, {"item_id": "item-c1"}]
    plain, sent = [scores(await app.ask([BOUGHT], candidates=candidates)) for app in (shop, cold_start_shop)]
    assert sent["item-c1"] == plain["item-c1"]
    assert logit(sent["new"]) - logit(plain["new"]) >= SLOPE * ALWAYS - 1e-3
    added = {"items": [{"item_id": "new", "text": "cccc"}]}
    answer = await cold_start_shop.client.put(f"/v1/catalogues/{CATALOGUE}/items", json=added)
    assert answer.status_code == 200, answer.text
    assert scores(await cold_start_shop.ask([BOUGHT], top_k=100))["new"] == pytest.approx(sent["new"], rel=1e-4)
    request = {"inputs": {"history": [BOUGHT], "catalogue": CATALOGUE, "candidates": [{"item_id": "new"}]}}
    explained = await cold_start_shop.client.post("/v1/explain/recommend", json=request)
    assert explained.status_code == 200, explained.text
    assert explained.json()["results"][0]["target"]["score"] == pytest.approx(sent["new"], rel=1e-4)


async def test_a_history_speaks_for_similar_cold_items(shop: Shop, cold_start_shop: Shop) -> None:
    for item, more in (("item-c4", TAKEN * NEAREST_WEIGHTS[0]), ("item-上2", 0.0)):
        history, candidates = [{"item_id": item, "event": "purchase"}], [{"item_id": "new", "text": "cccc"}]
        plain, shared = [await app.ask(history, candidates=candidates) for app in (shop, cold_start_shop)]
        gained = logit(shared["items"][0]["score"]) - logit(plain["items"][0]["score"])
        assert gained == pytest.approx(SLOPE * (ALWAYS + more), abs=1e-2)
        assert shared["items"][0]["reasons"][0]["history_index"] == 0


async def test_a_cold_item_in_the_history_has_no_weight_and_is_not_new_any_more(
    shop: Shop, cold_start_shop: Shop
) -> None:
    history = [BOUGHT, {"item_id": "new", "text": "cccc", "event": "purchase"}]
    candidates = [{"item_id": "new", "text": "cccc"}, {"item_id": "item-b2"}]
    plain, result = [scores(await app.ask(history, candidates=candidates)) for app in (shop, cold_start_shop)]
    assert result == plain


NEW = ({"item_id": "new-1", "text": "cccc"}, {"item_id": "new-2", "text": "上下"}, {"item_id": "new-3", "text": "bbaa"})


async def test_the_minimum_of_new_items_takes_the_last_ranks(shop: Shop, cold_start_shop: Shop) -> None:
    """In one shop, all new items rank low. In the second shop, a new item ranks high."""
    for app in (shop, cold_start_shop):
        added = await app.client.put(f"/v1/catalogues/{CATALOGUE}/items", json={"items": list(NEW)})
        assert added.status_code == 200, added.text
        everything = {item["item_id"]: item for item in (await app.ask([BOUGHT], top_k=100))["items"]}
        by_score = list(everything)
        new = [item_id for item_id in by_score if str(item_id).startswith("new")]
        known = [item_id for item_id in by_score if not str(item_id).startswith("new")]
        assert (by_score.index(new[0]) < 5, by_score.index(new[1]) < 5) == (app is cold_start_shop, False)
        for top_k, wanted in ((5, 0), (5, 1), (5, 2), (5, 3), (2, 2), (1, 1), (2, 50), (5, 50), (100, 2)):
            result = await app.ask([BOUGHT], top_k=top_k, min_new_items=wanted)
            among = len([item_id for item_id in by_score[:top_k] if item_id in new])
            taken = new[: max(among, min(wanted, top_k))]
            assert ids(result) == sorted(taken + known[: top_k - len(taken)], key=by_score.index)
            for rank, item in enumerate(result["items"], start=1):
                expected = everything[item["item_id"]]
                assert item["rank"] == rank
                assert item["score"] == pytest.approx(expected["score"], rel=1e-5)
                assert [why["history_index"] for why in item["reasons"]] == [
                    why["history_index"] for why in expected["reasons"]
                ]


async def test_the_explained_item_is_ranked_first_for_every_min_new_items(shop: Shop) -> None:
    candidates = [{"item_id": "item-c1"}, *NEW]
    request = {"inputs": {"history": [BOUGHT], "candidates": candidates, "min_new_items": 1}}
    explained = await shop.client.post("/v1/explain/recommend", json=request)
    assert explained.status_code == 200, explained.text
    first = (await shop.ask([BOUGHT], candidates=candidates))["items"][0]
    assert first["item_id"] == explained.json()["results"][0]["target"]["item_id"] == "item-c1"


async def test_new_items_come_from_candidates_texts_and_filtered_items(shop: Shop) -> None:
    """Items of the history are not new to the user."""
    items = [{**item, "attributes": {"price": 2 + index}} for index, item in enumerate(NEW)]
    await shop.client.put(f"/v1/catalogues/{CATALOGUE}/items", json={"items": items})
    history = [BOUGHT, {"item_id": "new-1", "event": "view"}]
    cheap = await shop.ask(history, top_k=4, min_new_items=4, filter={"price": {"lt": 4}})
    assert "new-2" in ids(cheap)
    assert "new-3" not in ids(cheap)
    every = [{"item_id": item.item_id} for item in CATALOGUE_ITEMS]
    candidates = [*every, {"text": "ccbb"}, {"item_id": "new-1"}, {"item_id": "new-3"}]
    result = await shop.ask(history, candidates=candidates, top_k=3, min_new_items=2)
    assert {item["candidate_index"] for item in result["items"]} >= {len(every), len(every) + 2}


async def test_without_a_history_new_items_are_ranked_by_popularity(shop: Shop) -> None:
    items = [{**item, "popularity": index} for index, item in enumerate(NEW)]
    await shop.client.put(f"/v1/catalogues/{CATALOGUE}/items", json={"items": items})
    plain, result = [ids(await shop.ask([], top_k=3, min_new_items=wanted)) for wanted in (0, 2)]
    assert not {"new-1", "new-2", "new-3"} & set(plain)
    assert set(result) == {plain[0], "new-3", "new-2"}


@pytest.mark.parametrize("wanted", [-1, 1.5, "2", 10_000, None, True])
async def test_a_wrong_min_new_items_is_refused(shop: Shop, wanted: object) -> None:
    answer = await shop.client.post("/v1/recommend", json={"inputs": {"history": [BOUGHT], "min_new_items": wanted}})
    assert_problem(answer, 422, "invalid_request", "/inputs/min_new_items")


async def test_in_another_catalogue_every_item_is_new(shop: Shop, recommend_bundle: Bundle) -> None:
    """The model was trained without the items of this catalogue."""
    vectors = dict(zip(("o-1", "o-2", "o-3"), np.eye(3, WIDTH, dtype=np.float32), strict=True))
    entries = [Item(name, text) for name, text in zip(vectors, ("aaaa", "bbbb", "cccc"), strict=True)]
    create_catalogue(shop.folder / FOLDER / "other", recommend_bundle.model_digest, WIDTH, entries, vectors)
    history = [{"item_id": "o-2", "event": "view"}]
    plain, result = [await shop.ask(history, catalogue="other", top_k=2, min_new_items=wanted) for wanted in (0, 2)]
    assert result == plain
