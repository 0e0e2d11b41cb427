"""An item that came after training, over HTTP: what its like are told it is told, in the catalogue and as a text."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.special import logit

from models.bundle import MANIFEST, digest_of, load
from models.newcomers import SHARES, kin_of
from models.ranking_files import WEIGHTS, catalogue_of
from models.replies import unit
from service.metrics import Metrics
from tests.service import shop as shops
from tests.service.shop import BOUGHT, Shop, scores
from tests.tiny import CATALOGUE, tiny_recommend_bundle

pytestmark = pytest.mark.anyio

ALWAYS, TAKEN = 2.0, 1.5
SLOPE = 0.5
"""Of the tiny bundle's calibration."""


@pytest.fixture
async def welcoming(tmp_path: Path, metrics: Metrics) -> AsyncIterator[Shop]:
    """As `shop`, of a bundle that knows of newcomers."""
    path = tiny_recommend_bundle(tmp_path)
    weights, vectors = load_file(path / WEIGHTS), catalogue_of(load(path))[2]
    known = np.ones(len(vectors), np.bool_)
    weights |= {"newcomers": np.asarray([ALWAYS, 0.0, TAKEN], np.float32)}
    weights |= {"kin": kin_of(unit(vectors - weights["ids.weight"]), known)}
    save_file(weights, path / WEIGHTS)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest["files"][WEIGHTS] = digest_of(path / WEIGHTS)
    (path / MANIFEST).write_text(json.dumps(manifest))
    async with shops.serving(load(path), tmp_path / "other shelf", metrics) as running:
        yield running


async def test_an_item_added_to_the_catalogue_is_told_what_one_that_is_sent_is_told(
    shop: Shop, welcoming: Shop
) -> None:
    candidates = [{"item_id": "new", "text": "cccc"}, {"item_id": "item-c1"}]
    plain, sent = [scores(await one.ask([BOUGHT], candidates=candidates)) for one in (shop, welcoming)]
    assert sent["item-c1"] == plain["item-c1"]
    assert logit(sent["new"]) - logit(plain["new"]) >= SLOPE * ALWAYS - 1e-3
    added = {"items": [{"item_id": "new", "text": "cccc"}]}
    answer = await welcoming.client.put(f"/v1/catalogues/{CATALOGUE}/items", json=added)
    assert answer.status_code == 200, answer.text
    assert scores(await welcoming.ask([BOUGHT], top_k=100))["new"] == pytest.approx(sent["new"], rel=1e-4)
    asked = {"inputs": {"history": [BOUGHT], "catalogue": CATALOGUE, "candidates": [{"item_id": "new"}]}}
    explained = await welcoming.client.post("/v1/explain/recommend", json=asked)
    assert explained.status_code == 200, explained.text
    assert explained.json()["results"][0]["target"]["score"] == pytest.approx(sent["new"], rel=1e-4)


async def test_what_the_user_took_speaks_for_newcomers_like_it(shop: Shop, welcoming: Shop) -> None:
    for item, more in (("item-c4", TAKEN * SHARES[0]), ("item-上2", 0.0)):
        history, candidates = [{"item_id": item, "event": "purchase"}], [{"item_id": "new", "text": "cccc"}]
        plain, told = [await one.ask(history, candidates=candidates) for one in (shop, welcoming)]
        gained = logit(told["items"][0]["score"]) - logit(plain["items"][0]["score"])
        assert gained == pytest.approx(SLOPE * (ALWAYS + more), abs=1e-2)
        assert told["items"][0]["because"][0]["history_index"] == 0


async def test_a_newcomer_in_the_history_says_nothing_and_is_none_any_more(shop: Shop, welcoming: Shop) -> None:
    history = [BOUGHT, {"item_id": "new", "text": "cccc", "event": "purchase"}]
    candidates = [{"item_id": "new", "text": "cccc"}, {"item_id": "item-b2"}]
    plain, found = [scores(await one.ask(history, candidates=candidates)) for one in (shop, welcoming)]
    assert found == plain
