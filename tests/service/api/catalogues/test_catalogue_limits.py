"""Bounds of catalogues: numbers in their ranges, and the items and bytes that edits may add."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from models.bundle import Bundle
from models.catalogue.folder import create_catalogue
from models.catalogue.items import Item
from service.telemetry.metrics import Metrics
from tests.support.catalogue_app import ITEM, Shop, serving
from tests.support.odd_files import ODD_FILES, make_odd
from tests.support.service_app import assert_problem
from tests.support.tiny_bundle import CATALOGUE, WIDTH

pytestmark = pytest.mark.anyio

MAX_ITEMS, MAX_BYTES = 4, 2**20


@pytest.fixture
async def small_shop(bundle: Bundle, tmp_path: Path, metrics: Metrics) -> AsyncIterator[Shop]:
    create_catalogue(tmp_path / "data" / "catalogues" / "books", bundle.model_digest, WIDTH)
    async with serving(
        bundle, tmp_path / "data", metrics, max_catalogue_items=MAX_ITEMS, max_catalogue_bytes=MAX_BYTES
    ) as running:
        yield running


def items(*ids: int, text: str = "abc") -> list[dict[str, Any]]:
    return [{"item_id": str(number), "text": text} for number in ids]


@pytest.mark.parametrize("popularity", [-1, 1e308, 2**53 + 2, 10**400, "3", True, None])
async def test_a_popularity_outside_its_range_is_refused(shop: Shop, popularity: Any) -> None:
    answer = await shop.put("books", [ITEM | {"popularity": popularity}])
    assert_problem(answer, 422, "invalid_request", "/items/0/popularity")
    assert answer.json()["detail"] == "Input should be a number from 0 to 2**53."


@pytest.mark.parametrize("value", [1e308, -1e17, 2**53 + 1, 10**400, ["a"], {"a": 1}, "x" * 1_001])
async def test_an_attribute_outside_its_range_is_refused_with_one_pointer(shop: Shop, value: Any) -> None:
    answer = await shop.put("books", [ITEM | {"attributes": {"price": value}}])
    assert_problem(answer, 422, "invalid_request", "/items/0/attributes/price")
    assert "from -2**53 to 2**53; send a larger number as a string" in answer.json()["detail"]


async def test_the_most_popular_items_still_have_scores(shop: Shop) -> None:
    extremes = [{"item_id": name, "text": "abc", "popularity": 2**53} for name in ("1", "2")]
    assert await shop.outcomes("books", extremes) == ["added", "added"]
    answer = await shop.client.post("/v1/recommend", json={"inputs": {"history": [], "catalogue": "books"}})
    assert [item["score"] for item in answer.json()["results"][0]["items"]] == [0.5, 0.5]


async def test_a_full_catalogue_takes_no_further_item(small_shop: Shop) -> None:
    assert await small_shop.outcomes("books", items(1, 2, 3)) == ["added"] * 3
    for ids in ((4, 5), (3, 4, 5)):
        answer = await small_shop.put("books", items(*ids))
        assert_problem(answer, 413, "catalogue_full", "/items")
        assert "books: it would have 5 items, and the limit is 4; nothing was changed" in answer.json()["detail"]
        assert "HEED_MAX_CATALOGUE_ITEMS" in answer.json()["detail"]
    assert sorted(await small_shop.texts("books")) == ["1", "2", "3"]
    assert await small_shop.outcomes("books", items(4)) == ["added"]
    assert await small_shop.outcomes("books", items(4, text="cba")) == ["changed"]
    assert await small_shop.outcomes("books", items(5), ["1"]) == ["added", "removed"]
    assert sorted(await small_shop.texts("books")) == ["2", "3", "4", "5"]


async def test_a_full_catalogue_embeds_nothing(small_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await small_shop.outcomes("books", items(1, 2, 3, 4)) == ["added"] * 4
    monkeypatch.setattr(small_shop.engine, "predict", None)
    assert_problem(await small_shop.put("books", items(5, text="new")), 413, "catalogue_full", "/items")


@pytest.fixture
async def narrow_shop(bundle: Bundle, tmp_path: Path, metrics: Metrics) -> AsyncIterator[Shop]:
    create_catalogue(tmp_path / "data" / "catalogues" / "books", bundle.model_digest, WIDTH)
    async with serving(bundle, tmp_path / "data", metrics, max_catalogue_bytes=MAX_BYTES) as running:
        yield running


async def test_the_bytes_of_a_catalogue_are_limited_and_removals_make_room(narrow_shop: Shop) -> None:
    wide = {"text": "abc", "attributes": {str(number): "x" * 1_000 for number in range(32)}}
    batches = [[wide | {"item_id": f"{start}-{number}"} for number in range(10)] for start in range(5)]
    for batch in batches[:2]:
        assert await narrow_shop.outcomes("books", batch) == ["added"] * 10
    assert await narrow_shop.outcomes("books", batches[2][:5]) == ["added"] * 5
    answer = await narrow_shop.put("books", batches[3])
    assert_problem(answer, 413, "catalogue_full", "/items")
    assert "bytes, and the limit is 1,048,576; nothing was changed" in answer.json()["detail"]
    assert "HEED_MAX_CATALOGUE_BYTES" in answer.json()["detail"]
    assert len(await narrow_shop.texts("books")) == 25
    removed = [item["item_id"] for item in batches[0]]
    assert await narrow_shop.outcomes("books", remove=removed) == ["removed"] * 10
    assert await narrow_shop.outcomes("books", batches[3]) == ["added"] * 10


def store_value(shop: Shop, column: str, value: str) -> None:
    """Change a column of every stored item, as an older version could have written it."""
    with closing(sqlite3.connect(shop.folder / "books" / "items.sqlite")) as database:
        database.execute(f"UPDATE items SET {column} = {value}, version = 9")
        database.execute("UPDATE meta SET version = 9")
        database.commit()


async def test_a_stored_popularity_above_the_range_counts_as_the_most(shop: Shop) -> None:
    assert await shop.outcomes("books", [{"item_id": name, "text": "abc"} for name in ("1", "2")]) == ["added"] * 2
    store_value(shop, "popularity", "1e308")
    answer = await shop.client.post("/v1/recommend", json={"inputs": {"history": [], "catalogue": "books"}})
    assert [item["score"] for item in answer.json()["results"][0]["items"]] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("column", "value"),
    [("popularity", "-1"), ("popularity", "NULL"), ("attributes", "'{\"price\": 1e999}'"), ("attributes", "'{'")],
)
async def test_a_catalogue_with_a_number_outside_its_range_is_refused(shop: Shop, column: str, value: str) -> None:
    assert await shop.outcomes("books", [ITEM]) == ["added"]
    store_value(shop, column, value)
    answer = await shop.client.get("/v1/catalogues/books")
    assert_problem(answer, 503, "catalogue_unusable")
    assert "item '1' cannot be read" in answer.json()["detail"]


async def test_a_catalogue_with_a_vector_that_is_not_finite_is_refused_and_told(
    bundle: Bundle, tmp_path: Path, metrics: Metrics
) -> None:
    folder = tmp_path / "data" / "catalogues" / "books"
    vector = np.zeros(WIDTH, np.float32)
    create_catalogue(folder, bundle.model_digest, WIDTH, [Item("1", "abc")], {"1": vector})
    vector[1] = np.nan
    vector.tofile(folder / "vectors.f32")
    with capture_logs() as logs:
        async with serving(bundle, tmp_path / "data", metrics) as shop:
            answer = await shop.client.get("/v1/catalogues/books")
            assert_problem(answer, 503, "catalogue_unusable")
            assert "its vector file cannot be used" in answer.json()["detail"]
            assert_problem(await shop.put("books", [ITEM]), 503, "catalogue_unusable")
            history = {"inputs": {"history": [{"text": "abc", "event": "view"}]}}
            assert (await shop.client.post("/v1/recommend", json=history)).json()["results"][0]["items"]
    assert [line["event"] for line in logs if line.get("catalogue") == "books"] == ["catalogue cannot be used"]


@pytest.mark.parametrize("kind", ODD_FILES)
@pytest.mark.parametrize("name", ["items.sqlite", "vectors.f32", "vectors.f32.index"])
async def test_things_that_are_no_files_of_a_catalogue_block_nothing(
    bundle: Bundle, tmp_path: Path, metrics: Metrics, kind: str, name: str
) -> None:
    folder = tmp_path / "data" / "catalogues"
    create_catalogue(folder / "books", bundle.model_digest, WIDTH)
    (folder / "books" / name).unlink(missing_ok=True)
    make_odd(kind, folder / "books" / name)
    with capture_logs() as logs:
        async with serving(bundle, tmp_path / "data", metrics) as shop:
            answer = await shop.put("books", [ITEM])
            if "index" in name:
                assert answer.status_code == 200, answer.text
            else:
                assert_problem(answer, 503, "catalogue_unusable")
                assert f"{name} is not a regular file" in answer.json()["detail"]
            history = {"inputs": {"history": [{"text": "abc", "event": "view"}]}}
            assert (await shop.client.post("/v1/recommend", json=history)).json()["results"][0]["items"]
    assert len([line for line in logs if line.get("catalogue") == "books"]) <= 2


@pytest.mark.parametrize("kind", ODD_FILES)
async def test_things_that_are_no_catalogues_are_left_out_and_told_once(
    bundle: Bundle, tmp_path: Path, metrics: Metrics, kind: str
) -> None:
    folder = tmp_path / "data" / "catalogues"
    folder.mkdir(parents=True)
    make_odd(kind, folder / "odd")
    with capture_logs() as logs:
        async with serving(bundle, tmp_path / "data", metrics) as shop:
            assert_problem(await shop.put("odd", [ITEM]), 404, "not_found")
            listed = (await shop.client.get("/v1/catalogues")).json()["catalogues"]
            assert [catalogue["name"] for catalogue in listed] == [CATALOGUE]
    assert [line["event"] for line in logs if line.get("catalogue") == "odd"] == [
        "this is no catalogue and is left out"
    ]
