"""Catalogues over HTTP and beside other processes, with a real tiny bundle in this process."""

from __future__ import annotations

import asyncio
import re
import resource
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.bundle import CARD, Bundle, load_bundle, save_bundle
from models.catalogue.folder import create_catalogue, remove_catalogue
from models.catalogue.items import Item
from models.catalogue.store import Catalogue
from models.ranking.bundle_files import load_recommender
from models.ranking.recommender import Recommender
from models.runtime.offline import open_text_encoder
from models.runtime.onnx import OnnxRuntime
from models.text.tokenizer import Tokenizer
from service.api.gateway import create_app
from service.api.recommend import Rankings
from service.inference.cache import CachedPredictor
from service.inference.engine import Engine
from service.inference.ranking_engine import TASK, RankingEngine
from service.registry.catalogues import CatalogueRegistry, item_vectors
from service.schemas.catalogue import MAX_ITEM_CHARS, MAX_REMOVED, CatalogueEdited, CatalogueInfo, CatalogueList
from service.schemas.wire import MAX_INPUTS
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes
from tests.support.service_app import JSON, assert_problem
from tests.support.tiny_bundle import CATALOGUE, CATALOGUE_ITEMS, WIDTH, tiny_recommend_bundle

pytestmark = pytest.mark.anyio

ITEM = {"item_id": "1", "text": "abc"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_recommend_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def recommender(bundle: Bundle) -> Recommender:
    return load_recommender(bundle)


@dataclass(frozen=True)
class Shop:
    client: httpx.AsyncClient
    catalogues: CatalogueRegistry
    folder: Path
    engine: Engine

    async def put(self, name: str, items: Any = (), remove: Any = ()) -> httpx.Response:
        return await self.client.put(
            f"/v1/catalogues/{name}/items", json={"items": list(items), "remove": list(remove)}
        )

    async def outcomes(self, name: str, items: Any = (), remove: Any = ()) -> list[str]:
        answer = await self.put(name, items, remove)
        assert answer.status_code == 200, answer.text
        CatalogueEdited.model_validate_json(answer.content)
        return [
            result["outcome"] if "outcome" in result else result["error"]["code"] for result in answer.json()["results"]
        ]

    async def texts(self, name: str) -> dict[str, str]:
        snapshot = await self.catalogues.snapshot(name)
        return {item_id: snapshot.texts[row] for item_id, row in snapshot.row_by_id.items()}


@asynccontextmanager
async def serving(bundle: Bundle, data_dir: Path | None, metrics: Metrics, **settings: Any) -> AsyncIterator[Shop]:
    task = metrics.task("recommend")
    tokenizer = Tokenizer(bundle.tokenizer, bundle.max_tokens)
    engine = Engine(bundle, tokenizer, OnnxRuntime(bundle.graph), fakes.LIMITS, task)
    recommender = load_recommender(bundle)
    catalogues = CatalogueRegistry(bundle, recommender, data_dir)
    app = create_app(
        {"recommend": CachedPredictor(engine, 0, task)},
        Settings(**settings),
        metrics,
        rankings=Rankings(RankingEngine(recommender, metrics.task(TASK)), catalogues),
    )
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        yield Shop(client, catalogues, (data_dir or Path()) / "catalogues", engine)


@pytest.fixture
async def shop(bundle: Bundle, tmp_path: Path, metrics: Metrics) -> AsyncIterator[Shop]:
    create_catalogue(tmp_path / "data" / "catalogues" / "books", bundle.model_digest, WIDTH)
    async with serving(bundle, tmp_path / "data", metrics) as running:
        yield running


# Edits.


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


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({}, ""),
        ({"items": [], "remove": []}, ""),
        ({"items": [ITEM, ITEM]}, ""),
        ({"items": [ITEM], "remove": ["1"]}, ""),
        ({"remove": ["1", "1"]}, ""),
        ({"items": [{"item_id": "1"}]}, "/items/0/text"),
        ({"items": [{"item_id": "", "text": "a"}]}, "/items/0/item_id"),
        ({"items": [{"item_id": 1, "text": "a"}]}, "/items/0/item_id"),
        ({"items": [{"item_id": "i" * 257, "text": "a"}]}, "/items/0/item_id"),
        ({"items": [ITEM, {"item_id": "2", "text": "a" * (MAX_ITEM_CHARS + 1)}]}, "/items/1/text"),
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


# Lists.


async def test_unusable_catalogues_are_listed_with_the_reason(shop: Shop, bundle: Bundle) -> None:
    create_catalogue(shop.folder / "old", "b" * 64, WIDTH)
    create_catalogue(shop.folder / "broken", bundle.model_digest, WIDTH)
    (shop.folder / "broken" / "items.sqlite").write_bytes(b"no database" * 1000)
    answer = await shop.client.get("/v1/catalogues")
    CatalogueList.model_validate_json(answer.content)
    catalogues = {catalogue["name"]: catalogue for catalogue in answer.json()["catalogues"]}
    assert sorted(catalogues) == sorted(["books", "broken", "old", CATALOGUE])
    assert catalogues["books"] == {"name": "books", "count": 0, "version": 0, "digest": bundle.model_digest}
    assert catalogues[CATALOGUE]["count"] == len(CATALOGUE_ITEMS)
    assert (catalogues["old"]["error"]["code"], catalogues["broken"]["error"]["code"]) == (
        "catalogue_outdated",
        "catalogue_unusable",
    )
    catalogue = await shop.client.get("/v1/catalogues/books")
    assert CatalogueInfo.model_validate_json(catalogue.content).count == 0
    assert catalogue.json() == catalogues["books"]


async def test_a_catalogue_of_another_model_is_refused_with_the_command_that_helps(shop: Shop, bundle: Bundle) -> None:
    create_catalogue(shop.folder / "old", "b" * 64, WIDTH, [Item("1", "abc")], {"1": np.ones(WIDTH, np.float32)})
    for answer in (await shop.put("old", [ITEM]), await shop.client.get("/v1/catalogues/old")):
        assert_problem(answer, 409, "catalogue_outdated")
        assert answer.json()["detail"].endswith("heed catalogue rebuild old.")
    assert await shop.outcomes("books", [ITEM]) == ["added"]
    with closing(Catalogue(shop.folder / "old")) as elsewhere:
        elsewhere.replace_vectors(bundle.model_digest, WIDTH, {"1": ("abc", np.zeros(WIDTH, np.float32))})
    assert await shop.outcomes("old", [ITEM]) == ["unchanged"]


async def test_a_broken_catalogue_is_opened_again_when_its_file_changes(shop: Shop, bundle: Bundle) -> None:
    create_catalogue(shop.folder / "broken", bundle.model_digest, WIDTH)
    file = shop.folder / "broken" / "items.sqlite"
    whole = file.read_bytes()
    file.write_bytes(b"no database" * 1000)
    for _ in range(2):
        assert_problem(await shop.client.get("/v1/catalogues/broken"), 503, "catalogue_unusable")
    file.write_bytes(whole)
    assert (await shop.client.get("/v1/catalogues/broken")).json()["count"] == 0


# Other processes.


async def test_the_next_request_sees_edits_of_other_processes(shop: Shop, bundle: Bundle) -> None:
    vectors = {"1": np.ones(WIDTH, np.float32)}
    with closing(Catalogue(shop.folder / "books")) as elsewhere:
        elsewhere.edit(bundle.model_digest, [Item("1", "abc")], vectors)
        assert await shop.texts("books") == {"1": "abc"}
        elsewhere.edit(bundle.model_digest, [], {}, ["1"])
        assert await shop.texts("books") == {}
    create_catalogue(shop.folder / "later", bundle.model_digest, WIDTH, [Item("1", "later")], vectors)
    assert await shop.texts("later") == {"1": "later"}
    remove_catalogue(shop.folder / "later")
    assert_problem(await shop.client.get("/v1/catalogues/later"), 404, "not_found")
    create_catalogue(shop.folder / "later", bundle.model_digest, WIDTH, [Item("1", "again")], vectors)
    assert await shop.texts("later") == {"1": "again"}


async def test_a_cancelled_request_leaves_no_stale_snapshot(shop: Shop, bundle: Bundle) -> None:
    """Cancel a caller while its thread reads the newest state: the next caller must not miss that state."""
    with closing(Catalogue(shop.folder / "books")) as elsewhere:
        for index in range(20):
            elsewhere.edit(bundle.model_digest, [Item(str(index), "abc")], {str(index): np.ones(WIDTH, np.float32)})
            given_up = asyncio.ensure_future(shop.catalogues.snapshot("books"))
            await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.sleep(0.01)
            assert len(await shop.texts("books")) == index + 1


async def test_checking_for_changes_is_cheap(shop: Shop) -> None:
    await shop.catalogues.snapshot(CATALOGUE)
    started_s = time.perf_counter()
    for _ in range(200):
        await shop.catalogues.snapshot(CATALOGUE)
    assert (time.perf_counter() - started_s) / 200 < 0.002


# The model's own catalogue.


async def test_the_models_own_catalogue_exists_and_keeps_its_edits(
    bundle: Bundle, tmp_path: Path, metrics: Metrics
) -> None:
    async with serving(bundle, tmp_path, metrics) as shop:
        assert await shop.texts(CATALOGUE) == {item.item_id: item.text for item in CATALOGUE_ITEMS}
        snapshot = await shop.catalogues.snapshot(CATALOGUE)
        assert snapshot.filter_mask({"price": {"lte": 2}, "kind": "上"}).sum() == 2  # type: ignore[union-attr]
        assert await shop.outcomes(CATALOGUE, [], [CATALOGUE_ITEMS[0].item_id]) == ["removed"]
    async with serving(bundle, tmp_path, metrics) as again:
        assert len(await again.texts(CATALOGUE)) == len(CATALOGUE_ITEMS) - 1


@pytest.fixture(scope="module")
def successor(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another model by its digest: it reads a token less."""
    folder = tmp_path_factory.mktemp("successor")
    shutil.copytree(bundle.path, folder / "recommend")
    manifest = folder / "recommend" / "bundle.json"
    fewer = f'"max_tokens": {bundle.max_tokens - 1}'
    manifest.write_text(re.sub(r'"max_tokens": \d+', fewer, manifest.read_text()))
    return load_bundle(folder / "recommend")


@pytest.mark.parametrize("edited", [False, True], ids=["as shipped", "edited"])
async def test_a_new_model_replaces_its_own_catalogue_unless_it_was_edited(
    bundle: Bundle, successor: Bundle, tmp_path: Path, metrics: Metrics, edited: bool
) -> None:
    async with serving(bundle, tmp_path, metrics) as shop:
        if edited:
            await shop.outcomes(CATALOGUE, [ITEM])
    async with serving(successor, tmp_path, metrics) as shop:
        answer = await shop.client.get(f"/v1/catalogues/{CATALOGUE}")
        if edited:
            assert_problem(answer, 409, "catalogue_outdated")
        else:
            assert answer.json()["digest"] == successor.model_digest


async def test_a_new_card_of_a_bundle_keeps_edited_catalogues(bundle: Bundle, tmp_path: Path, metrics: Metrics) -> None:
    shutil.copytree(bundle.path, tmp_path / "recommend")
    (tmp_path / "recommend" / CARD).write_text("Measured again.\n", encoding="utf-8")
    renewed = save_bundle(tmp_path / "recommend", replace(bundle, version="0.0.2"))
    assert renewed.digest != bundle.digest
    async with serving(bundle, tmp_path, metrics) as shop:
        await shop.outcomes(CATALOGUE, [ITEM])
        before = await shop.texts(CATALOGUE)
    async with serving(renewed, tmp_path, metrics) as shop:
        assert await shop.texts(CATALOGUE) == before


async def test_replicas_that_start_together_copy_the_catalogue_once(
    bundle: Bundle, recommender: Recommender, tmp_path: Path
) -> None:
    replicas = [CatalogueRegistry(bundle, recommender, tmp_path) for _ in range(4)]
    await asyncio.gather(*(replica.start() for replica in replicas))
    counts = [(await replica.snapshot(CATALOGUE)).count for replica in replicas]
    assert counts == [len(CATALOGUE_ITEMS)] * 4
    assert [path.name for path in (tmp_path / "catalogues").iterdir()] == [CATALOGUE]
    for replica in replicas:
        await replica.stop()


async def test_without_a_data_folder_the_catalogue_is_read_only(bundle: Bundle, metrics: Metrics) -> None:
    async with serving(bundle, None, metrics) as shop:
        assert len(await shop.texts(CATALOGUE)) == len(CATALOGUE_ITEMS)
        assert_problem(await shop.put(CATALOGUE, [ITEM]), 409, "catalogue_read_only")


@contextmanager
def no_room(size: int = 4_096) -> Iterator[None]:
    """Let no file grow beyond a size.

    This is no fixture, because pytest may write its report to a file while a fixture is active.
    """
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


async def test_a_full_data_folder_makes_the_catalogue_unusable_and_does_not_stop_the_service(
    bundle: Bundle, recommender: Recommender, tmp_path: Path
) -> None:
    catalogues = CatalogueRegistry(bundle, recommender, tmp_path)
    with no_room():
        await catalogues.start()
        with pytest.raises(Exception, match="no room on its disk") as refused:
            await catalogues.snapshot(CATALOGUE)
    assert type(refused.value).__name__ == "CatalogueUnusable"
    await catalogues.stop()


def test_item_vectors_has_a_vector_for_each_id(recommender: Recommender) -> None:
    raw = np.eye(WIDTH, dtype=np.float32)[:2]
    result = item_vectors(recommender, "books", ["a", "b"], raw)
    assert list(result) == ["a", "b"]
    np.testing.assert_array_equal(result["b"], recommender.item_vectors(raw, [None, None])[1])
