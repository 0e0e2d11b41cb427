"""Large catalogues in a service: indexed in the background, correct after edits, and complete if indexing fails."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.bundle import Bundle
from models.catalogue import vector_index
from models.catalogue.folder import create_catalogue
from models.catalogue.items import Item
from models.catalogue.snapshot import Snapshot
from models.catalogue.store import Catalogue
from models.catalogue.vector_index import SUFFIX, VectorIndex
from models.ranking.bundle_files import load_recommender
from models.ranking.recommender import Recommender
from service.api.query_builder import build_query
from service.inference import ranking
from service.inference.ranking import Ranking, rank_query
from service.inference.ranking_query import RankingQuery
from service.registry.catalogues import CatalogueRegistry
from service.schemas.recommend import User
from tests.support.full_disk import no_room
from tests.support.tiny_bundle import WIDTH

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ITEMS, MAX_UNINDEXED = 3_000, 2_000
FILE = f"vectors.f32{SUFFIX}"


@pytest.fixture(autouse=True)
def inverted_lists(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_index, "MIN_INVERTED_ROWS", getattr(request, "param", MAX_UNINDEXED))
    monkeypatch.setattr(vector_index, "_LIST_ROWS", 16)


@pytest.fixture(scope="module")
def recommender(recommend_bundle: Bundle) -> Recommender:
    return load_recommender(recommend_bundle)


@pytest.fixture
def folder(recommend_bundle: Bundle, tmp_path: Path) -> Path:
    """A folder with two catalogues of 20 clusters: one is large, the other just small enough for no index."""
    rng = np.random.default_rng(2)
    for name, items in (("large", ITEMS), ("small", MAX_UNINDEXED)):
        clusters = rng.integers(0, 20, items)
        vectors = 2 * np.eye(20, WIDTH)[clusters] + 0.1 * rng.normal(size=(items, WIDTH))
        content = [Item(f"i{number}", f"text {number}", {"even": number % 2 == 0}) for number in range(items)]
        rows = dict(zip((item.item_id for item in content), vectors.astype(np.float32), strict=True))
        create_catalogue(tmp_path / "catalogues" / name, recommend_bundle.model_digest, WIDTH, content, rows)
    return tmp_path


@pytest.fixture
async def catalogues(
    recommend_bundle: Bundle, recommender: Recommender, folder: Path
) -> AsyncIterator[CatalogueRegistry]:
    registry = CatalogueRegistry(recommend_bundle, recommender, folder, MAX_UNINDEXED)
    await registry.start()
    yield registry
    await registry.stop()


async def indexed_snapshot(catalogues: CatalogueRegistry, name: str = "large") -> Snapshot:
    """Return the snapshot after all work in the background is done."""
    await catalogues.snapshot(name)
    for thread in threading.enumerate():
        if thread.name == "index":
            thread.join()
    return await catalogues.snapshot(name)


def make_query(snapshot: Snapshot, **more: Any) -> RankingQuery:
    history = [{"item_id": f"i{number}", "event": "purchase"} for number in (5, 70, 400)]
    return build_query(User.model_validate({"history": history, "exclude_history": True, **more}), snapshot, 0.0)


def ranked_ids(recommender: Recommender, query: RankingQuery) -> list[str]:
    ranking = rank_query(recommender, query)
    assert isinstance(ranking, Ranking)
    rows = ranking.positions if query.candidates is None else query.candidates[ranking.positions]
    return [query.snapshot.ids[row] for row in rows]


def without_index(query: RankingQuery) -> RankingQuery:
    return replace(query, snapshot=replace(query.snapshot, index=None))


async def put(
    registry: CatalogueRegistry, vectors: dict[str, np.ndarray], removed: list[str], text: str = "new"
) -> None:
    await registry.edit("large", [Item(name, text) for name in vectors], vectors, removed, np.inf)


async def test_a_large_catalogue_is_indexed_and_a_small_one_is_not(
    catalogues: CatalogueRegistry, recommender: Recommender, folder: Path
) -> None:
    large, small = await indexed_snapshot(catalogues), await indexed_snapshot(catalogues, "small")
    assert large.index is not None
    assert large.index.rows == ITEMS
    assert small.index is None
    assert (folder / "catalogues" / "large" / FILE).exists()
    assert not (folder / "catalogues" / "small" / FILE).exists()
    query = make_query(large, top_k=10)
    assert query.index is large.index
    assert query.length < without_index(query).length
    assert ranked_ids(recommender, query) == ranked_ids(recommender, without_index(query))


@pytest.mark.parametrize("more", [{"filter": {"even": True}}, {"candidates": [{"item_id": "i3"}, {"item_id": "i4"}]}])
async def test_filters_and_candidates_do_not_use_inverted_lists(
    catalogues: CatalogueRegistry, recommender: Recommender, more: dict[str, Any]
) -> None:
    query = make_query(await indexed_snapshot(catalogues), **more)
    assert query.snapshot.index is not None
    assert not query.snapshot.index.exact
    assert query.index is None
    assert ranked_ids(recommender, query) == ranked_ids(recommender, without_index(query))


async def test_new_items_are_found_in_any_inverted_list(
    catalogues: CatalogueRegistry, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model appears to be trained with all of the catalogue except every 101st item."""
    monkeypatch.setattr(recommender, "catalogue_name", "large")
    known = {f"i{number}": number % 30 for number in range(ITEMS) if number % 101}
    monkeypatch.setattr(recommender, "ids", known)
    query = make_query(await indexed_snapshot(catalogues), min_new_items=20, top_k=25)
    assert query.index is not None
    searches: list[bool] = []
    search = VectorIndex.search

    def counted_search(index: VectorIndex, *args: Any) -> Any:
        searches.append(True)
        return search(index, *args)

    monkeypatch.setattr(VectorIndex, "search", counted_search)
    ranked = ranked_ids(recommender, query)
    assert ranked == ranked_ids(recommender, without_index(query))
    assert len(set(ranked) - set(known)) == 20
    assert len(searches) == 1, "only for the whole catalogue"


async def test_an_inverted_index_is_not_used_with_many_excluded_items(catalogues: CatalogueRegistry) -> None:
    snapshot = await indexed_snapshot(catalogues)
    history = [{"item_id": f"i{number}", "event": "view"} for number in range(1_200)]
    assert make_query(snapshot, history=history).index is None


@pytest.mark.parametrize("inverted_lists", [ITEMS], indirect=True)
@pytest.mark.parametrize("more", [{}, {"filter": {"even": True}}, {"history": 1_200}])
async def test_an_exact_index_misses_nothing_whatever_is_excluded(
    catalogues: CatalogueRegistry, recommender: Recommender, more: dict[str, Any]
) -> None:
    if "history" in more:
        more = {"history": [{"item_id": f"i{number}", "event": "view"} for number in range(more["history"])]}
    snapshot = await indexed_snapshot(catalogues)
    assert snapshot.index is not None
    assert snapshot.index.exact
    query = make_query(snapshot, top_k=100, **more)
    assert query.index is snapshot.index
    assert ranked_ids(recommender, query) == ranked_ids(recommender, without_index(query))


async def test_cached_projections_of_a_small_catalogue_give_the_same_ranking(
    catalogues: CatalogueRegistry, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [{"text": f"text {number}"} for number in range(9)]
    known = [{"item_id": f"i{7 * number}"} for number in range(9)]
    candidates = [candidate for pair in zip(texts, known, strict=True) for candidate in pair]
    history = [
        {"item_id": "i5", "event": "view"},
        {"text": "text 3", "event": "cart"},
        {"item_id": "i70", "event": "view"},
    ]
    small = await indexed_snapshot(catalogues, "small")
    query = make_query(small, history=history, candidates=candidates, exclude_history=False, top_k=20)
    rng = np.random.default_rng(3)
    query = query.with_vectors([rng.normal(size=WIDTH).astype(np.float32) for _ in query.inline_items])
    cached = rank_query(recommender, query)
    monkeypatch.setattr(ranking, "MIN_INDEX_ROWS", 0)
    expected = rank_query(recommender, query)
    assert isinstance(cached, Ranking)
    assert isinstance(expected, Ranking)
    assert cached.positions == expected.positions
    np.testing.assert_allclose(cached.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize("name", ["small", "large"])
async def test_a_changed_item_is_ranked_by_its_new_vector(
    catalogues: CatalogueRegistry, recommender: Recommender, folder: Path, name: str
) -> None:
    """Replicas that ranked it before and fresh ones agree."""
    await indexed_snapshot(catalogues, name)
    before = ranked_ids(recommender, make_query(await indexed_snapshot(catalogues, name), top_k=100))
    first, last = before[0], before[-1]
    rows = (await indexed_snapshot(catalogues, name)).vectors
    row_by_id = (await indexed_snapshot(catalogues, name)).row_by_id
    swapped = {first: -rows[row_by_id[first]], last: rows[row_by_id[first]]}
    await catalogues.edit(name, [Item(item_id, "changed") for item_id in swapped], swapped, [], np.inf)
    after = await indexed_snapshot(catalogues, name)
    ranked = ranked_ids(recommender, make_query(after, top_k=100))
    assert ranked[0] == last
    assert first not in ranked
    with closing(Catalogue(folder / "catalogues" / name)) as fresh:
        assert ranked == ranked_ids(recommender, make_query(fresh.snapshot(), top_k=100))


async def test_an_edit_has_immediate_effect_and_removed_items_never_come_back(
    catalogues: CatalogueRegistry, recommender: Recommender
) -> None:
    before = await indexed_snapshot(catalogues)
    first = ranked_ids(recommender, make_query(before, top_k=3))
    same = {f"new {name}": before.vectors[before.row_by_id[name]] for name in first}
    await put(catalogues, same, first)
    after = await indexed_snapshot(catalogues)
    assert after.index is before.index
    assert sorted(ranked_ids(recommender, make_query(after, top_k=3))) == sorted(same)
    assert not set(first) & set(ranked_ids(recommender, make_query(after, top_k=100)))
    moved = {name: -5 * vector for name, vector in same.items()}
    await put(catalogues, moved, [], "changed")
    assert not set(moved) & set(ranked_ids(recommender, make_query(await indexed_snapshot(catalogues), top_k=20)))


async def test_rewriting_the_vectors_rewrites_the_index(
    catalogues: CatalogueRegistry, recommender: Recommender, folder: Path
) -> None:
    before = await indexed_snapshot(catalogues)
    gone = [f"i{number}" for number in range(500, 1_500)]
    more = {f"new {number}": np.full(WIDTH, 0.1, np.float32) for number in range(500)}
    await put(catalogues, more, gone)  # too few rows are unused for a rewrite
    grown = await indexed_snapshot(catalogues)
    assert grown.index is not None
    assert grown.index.rows == ITEMS + len(more), "it covers later items too"
    await put(catalogues, {}, [f"i{number}" for number in range(1_500, 1_800)])
    after = await indexed_snapshot(catalogues)
    assert after.file != before.file
    assert after.rows == after.count == 2_200
    assert after.index is not None
    assert after.index.rows == after.rows
    files = sorted(path.name for path in (folder / "catalogues" / "large").glob("vectors*"))
    assert files == [after.file, f"{after.file}{SUFFIX}"]
    assert ranked_ids(recommender, make_query(after)) == ranked_ids(recommender, without_index(make_query(after)))


async def test_replicas_build_an_index_once_and_later_ones_read_it(
    recommend_bundle: Bundle, recommender: Recommender, folder: Path
) -> None:
    replicas = [CatalogueRegistry(recommend_bundle, recommender, folder, MAX_UNINDEXED) for _ in range(3)]
    for replica in replicas:
        await replica.snapshot("large")
    assert all([(await indexed_snapshot(replica)).index for replica in replicas])
    inode = os.stat(folder / "catalogues" / "large" / FILE).st_ino
    later = CatalogueRegistry(recommend_bundle, recommender, folder, MAX_UNINDEXED)
    assert (await indexed_snapshot(later)).index is not None
    assert os.stat(folder / "catalogues" / "large" / FILE).st_ino == inode
    for replica in (*replicas, later):
        await replica.stop()


async def test_an_index_of_another_process_waits_for_its_edits_to_be_read(
    recommend_bundle: Bundle, recommender: Recommender, folder: Path
) -> None:
    here, there = (CatalogueRegistry(recommend_bundle, recommender, folder, MAX_UNINDEXED) for _ in "ab")
    old = (await indexed_snapshot(here)).index
    await put(there, {f"new {number}": np.full(WIDTH, 0.1, np.float32) for number in range(900)}, [])
    newer = (await indexed_snapshot(there)).index
    assert newer is not None
    with closing(Catalogue(folder / "catalogues" / "large")) as opened:
        opened.snapshot()
        opened.attach_index("another.f32", newer)
        assert opened.snapshot().index is None
    assert old is not None
    assert (await indexed_snapshot(here)).index is not old
    for replica in (here, there):
        await replica.stop()


async def test_without_disk_space_for_an_index_rankings_are_complete(
    recommend_bundle: Bundle, recommender: Recommender, folder: Path
) -> None:
    catalogues = CatalogueRegistry(recommend_bundle, recommender, folder, MAX_UNINDEXED)
    with no_room(2**16):  # enough to open the catalogue
        snapshot = await indexed_snapshot(catalogues)
    assert snapshot.index is None
    assert sorted(path.name for path in (folder / "catalogues" / "large").glob("*index*")) == []
    assert len(ranked_ids(recommender, make_query(snapshot))) == 10
    assert (await indexed_snapshot(catalogues)).index is None, "there is no second try so soon"
    await catalogues.stop()
