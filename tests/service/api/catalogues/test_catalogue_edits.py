"""Edits of catalogues over HTTP, with a real tiny bundle in this process."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from models.bundle import Bundle
from models.catalogue.folder import create_catalogue, remove_catalogue
from models.ranking.recommender import Recommender
from models.runtime.offline import open_text_encoder
from service.schemas.catalogue import MAX_ITEM_CHARS, MAX_REMOVED, CatalogueEdited
from service.schemas.wire import MAX_INPUTS
from tests.support.catalogue_app import ITEM, Shop
from tests.support.service_app import JSON, assert_problem
from tests.support.tiny_bundle import CATALOGUE, CATALOGUE_ITEMS, WIDTH

pytestmark = pytest.mark.anyio


async def test_outcomes_of_an_edit_are_in_the_order_of_the_request(shop: Shop, bundle: Bundle) -> None:
    answer = await shop.put("books", [ITEM, {"item_id": "茶", "text": "手机质量", "attributes": {"price": 3}}])
    body = answer.json()
    timings = body.pop("timings_ms")
    assert body == {
        "model": "recommend",
        "version": "0.0.1",
        "results": [
            {"item_id": "1", "outcome": "added", "truncated": False},
            {"item_id": "茶", "outcome": "added", "truncated": False},
        ],
        "catalogue": {"name": "books", "count": 2, "version": 1, "digest": bundle.model_digest},
    }
    assert timings["infer"] > 0
    changed = [{"item_id": "茶", "text": "手机质量", "attributes": {"price": 4, "none": None}}, ITEM]
    assert await shop.outcomes("books", changed, ["2"]) == ["changed", "unchanged", "unchanged"]
    assert await shop.outcomes("books", [], ["1", "茶"]) == ["removed", "removed"]
    assert await shop.texts("books") == {}


async def test_the_vector_of_an_item_is_the_embedding_of_its_text(
    shop: Shop, bundle: Bundle, recommender: Recommender
) -> None:
    texts = ["abc", "上下", "aabb", "x" * 500]
    await shop.outcomes("books", [{"item_id": text[:4], "text": text} for text in texts])
    expected = recommender.item_vectors(open_text_encoder(bundle).encode_texts(texts), [None] * 4)
    snapshot = await shop.catalogues.snapshot("books")
    np.testing.assert_allclose(snapshot.vectors[[snapshot.row_by_id[text[:4]] for text in texts]], expected, atol=1e-5)


async def test_id_embeddings_count_only_in_the_models_own_catalogue(shop: Shop, recommender: Recommender) -> None:
    known = CATALOGUE_ITEMS[0]
    for name in ("books", CATALOGUE):
        await shop.outcomes(name, [{"item_id": known.item_id, "text": "xyz"}, {"item_id": "other", "text": "xyz"}])
        snapshot = await shop.catalogues.snapshot(name)
        same = np.allclose(
            snapshot.vectors[snapshot.row_by_id[known.item_id]], snapshot.vectors[snapshot.row_by_id["other"]]
        )
        assert same == (name == "books")


async def test_an_unusable_text_does_not_affect_other_items(shop: Shop) -> None:
    await shop.outcomes("books", [{"item_id": "2", "text": "abc"}])
    items = [ITEM, {"item_id": "2", "text": " \u200b "}, {"item_id": "3", "text": ""}, {"item_id": "4", "text": "好"}]
    assert await shop.outcomes("books", items) == ["added", "empty_text", "empty_text", "added"]
    assert await shop.texts("books") == {"1": "abc", "2": "abc", "4": "好"}
    assert await shop.outcomes("books", items[1:2], ["4"]) == ["empty_text", "removed"]
    assert_problem(await shop.put("books", items[1:3]), 422, "empty_text", "/items/0/text")


async def test_an_unchanged_text_is_not_embedded_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    await shop.outcomes("books", [ITEM])
    monkeypatch.setattr(shop.engine, "predict", None)
    answer = await shop.put("books", [ITEM | {"popularity": 3}])
    assert answer.json()["results"] == [{"item_id": "1", "outcome": "changed", "truncated": None}]


async def test_a_long_text_is_truncated_and_marked(shop: Shop) -> None:
    answer = await shop.put("books", [{"item_id": "long", "text": "ab " * 300}])
    assert answer.json()["results"][0]["truncated"] is True


async def test_an_item_is_ranked_from_its_acknowledged_edit_to_its_removal(shop: Shop) -> None:
    for index in range(10):
        await shop.outcomes("books", [{"item_id": f"new {index}", "text": "好" * (index + 1), "popularity": index}])
        answer = await shop.client.post("/v1/recommend", json={"inputs": {"history": [], "catalogue": "books"}})
        (result,) = answer.json()["results"]
        assert [item["item_id"] for item in result["items"]] == [f"new {index}"]
        await shop.outcomes("books", [], [f"new {index}"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, ""),
        ({"items": [], "remove": []}, ""),
        ({"items": [{"item_id": "1"}]}, "/items/0/text"),
        ({"items": [{"item_id": "", "text": "a"}]}, "/items/0/item_id"),
        ({"items": [{"item_id": 1, "text": "a"}]}, "/items/0/item_id"),
        ({"items": [{"item_id": "i" * 257, "text": "a"}]}, "/items/0/item_id"),
        ({"items": [{"item_id": "2", "text": "a" * (MAX_ITEM_CHARS + 1)}]}, "/items/0/text"),
        ({"items": [ITEM | {"popularity": -1}]}, "/items/0/popularity"),
        ({"items": [ITEM | {"popularity": "1"}]}, "/items/0/popularity"),
        ({"items": [ITEM | {"colour": "red"}]}, "/items/0/colour"),
        ({"items": [ITEM | {"attributes": ["red"]}]}, "/items/0/attributes"),
        ({"items": [ITEM | {"attributes": {f"a{n}": 1 for n in range(33)}}]}, "/items/0/attributes"),
        ({"items": [{"item_id": str(index), "text": "a"} for index in range(MAX_INPUTS + 1)]}, "/items"),
        ({"remove": [str(index) for index in range(MAX_REMOVED + 1)]}, "/remove"),
        ({"remove": [""]}, "/remove/0"),
    ],
)
async def test_a_wrong_edit_is_refused_with_a_pointer(shop: Shop, body: dict[str, Any], pointer: str) -> None:
    answer = await shop.client.put("/v1/catalogues/books/items", json=body)
    assert_problem(answer, 422, "invalid_request", pointer)
    assert await shop.texts("books") == {}


@pytest.mark.parametrize(
    "value", ['{"a": {"b": 1}}', '{"a": [1]}', '{"a": 9007199254740993}', '{"": 1}', '{"a": 1e999}']
)
async def test_a_wrong_attribute_is_refused(shop: Shop, value: str) -> None:
    content = f'{{"items": [{{"item_id": "1", "text": "a", "attributes": {value}}}]}}'
    answer = await shop.client.put("/v1/catalogues/books/items", content=content, headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["pointer"].startswith("/items/0/attributes/")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
async def test_numbers_that_json_does_not_have_are_malformed(shop: Shop, number: str) -> None:
    content = f'{{"items": [{{"item_id": "1", "text": "a", "popularity": {number}}}]}}'
    answer = await shop.client.put("/v1/catalogues/books/items", content=content, headers=JSON)
    assert answer.status_code in (400, 422)
    assert await shop.texts("books") == {}


async def test_attributes_are_bounded_over_the_whole_catalogue(shop: Shop) -> None:
    for start in range(0, 96, 32):
        item = {"item_id": str(start), "text": "a", "attributes": {f"a{start + n}": 1 for n in range(32)}}
        assert await shop.outcomes("books", [item]) == ["added"]
    item = {"item_id": "96", "text": "a", "attributes": {f"a{96 + n}": 1 for n in range(32)}}
    assert_problem(await shop.put("books", [item]), 422, "invalid_request", "/items")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["none", "..", "%2e%2e", ".books", "a b", "书" * 100, "x" * 300, "%00", "%ff"])
async def test_an_invalid_name_is_no_catalogue(shop: Shop, name: str) -> None:
    for answer in (
        await shop.client.put(f"/v1/catalogues/{name}/items", json={"items": [ITEM]}),
        await shop.client.get(f"/v1/catalogues/{name}"),
    ):
        assert answer.status_code in (404, 405)
    assert sorted(path.name for path in shop.folder.iterdir()) == ["books", CATALOGUE]


async def test_concurrent_edits_all_succeed(shop: Shop) -> None:
    edits = [[{"item_id": f"{caller} {n}", "text": "ab" * (n + 1)} for n in range(5)] for caller in range(12)]
    answers = await asyncio.gather(*(shop.outcomes("books", items) for items in edits))
    assert answers == [["added"] * 5] * 12
    assert len(await shop.texts("books")) == 60
    assert (await shop.catalogues.snapshot("books")).version == 12


async def test_a_full_disk_is_a_problem_and_changes_nothing(shop: Shop) -> None:
    items = [
        {"item_id": str(index), "text": "ab" * (index % 20 + 1), "attributes": {"a": "x" * 900}} for index in range(200)
    ]
    await shop.outcomes("books", items[:1])
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    try:
        refused = await shop.put("books", items)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert_problem(refused, 507, "disk_full")
    assert len(await shop.texts("books")) == 1
    assert await shop.outcomes("books", items) == ["unchanged"] + ["added"] * 199


async def test_a_writer_that_holds_the_lock_makes_the_catalogue_busy(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.catalogue.store.BUSY_S", 0.1)
    remove_catalogue(shop.folder / "books")
    create_catalogue(shop.folder / "books", (await shop.catalogues.snapshot(CATALOGUE)).digest, WIDTH)
    await shop.catalogues.snapshot("books")
    with closing(sqlite3.connect(shop.folder / "books" / "items.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert_problem(await shop.put("books", [ITEM]), 503, "catalogue_busy")
        assert await shop.texts("books") == {}  # readers do not wait
    assert await shop.outcomes("books", [ITEM]) == ["added"]


async def test_wrong_items_and_removals_do_not_affect_the_others(shop: Shop) -> None:
    wrong = [None, {"item_id": "w", "text": 3}, {"item_id": "t", "text": "b", "attributes": {"tags": ["x"]}}]
    body = {"items": [ITEM, *wrong, {"item_id": "e", "text": " "}], "remove": ["gone", 7, ""]}
    answer = await shop.client.put("/v1/catalogues/books/items", json=body)
    assert answer.status_code == 200, answer.text
    CatalogueEdited.model_validate_json(answer.content)
    results = answer.json()["results"]
    assert [result["item_id"] for result in results] == ["1", None, "w", "t", "e", "gone", None, None]
    assert [result.get("error", {}).get("pointer") for result in results] == [
        None,
        "/items/1",
        "/items/2/text",
        "/items/3/attributes/tags",
        "/items/4/text",
        None,
        "/remove/1",
        "/remove/2",
    ]
    assert answer.json()["catalogue"]["count"] == 1
    only_wrong = await shop.client.put("/v1/catalogues/books/items", json={"items": wrong})
    assert_problem(only_wrong, 422, "invalid_request", "/items/0")


async def test_a_repeated_id_is_refused_alone_and_its_first_mention_counts(shop: Shop) -> None:
    later = {"item_id": "1", "text": "cba"}
    body = {"items": [ITEM, later, {"item_id": "2", "text": "b"}], "remove": ["2", "3", "3"]}
    answer = await shop.client.put("/v1/catalogues/books/items", json=body)
    assert answer.status_code == 200, answer.text
    CatalogueEdited.model_validate_json(answer.content)
    results = answer.json()["results"]
    assert [result["item_id"] for result in results] == ["1", "1", "2", "2", "3", "3"]
    assert [result.get("outcome") for result in results] == ["added", None, "added", None, "unchanged", None]
    errors = [result["error"] for result in results if "error" in result]
    assert [error["pointer"] for error in errors] == ["/items/1/item_id", "/remove/0", "/remove/2"]
    assert {(error["status"], error["code"]) for error in errors} == {(422, "invalid_request")}
    assert await shop.texts("books") == {"1": ITEM["text"], "2": "b"}


async def test_a_repeated_id_does_not_take_the_place_of_an_item_without_an_answer(shop: Shop) -> None:
    await shop.outcomes("books", [{"item_id": "1", "text": "old"}])
    empty = {"item_id": "1", "text": " "}
    assert await shop.outcomes("books", [empty, ITEM], ["9"]) == ["empty_text", "invalid_request", "unchanged"]
    assert await shop.texts("books") == {"1": "old"}
    assert_problem(await shop.put("books", [empty, ITEM]), 422, "empty_text", "/items/0/text")


async def test_a_new_text_in_another_language_is_marked(shop: Shop) -> None:
    items = [{"item_id": "fr", "text": "Tasse à thé en porcelaine"}, {"item_id": "zh", "text": "红楼梦"}, ITEM]
    marks = [(await shop.put("books", items)).json()["results"] for _ in "ab"]
    assert [[result.get("unsupported_language") for result in results] for results in marks] == [
        [True, None, None],
        [None, None, None],  # not new, and so not read
    ]
