"""Large catalogues in a service: indexed beside what serves, true after edits, and nothing lost where that fails.

What is large here is divided into lists; that fewer items are one list is said where it matters.
"""

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
from tests.service.api.test_catalogues import no_room
from tests.support.tiny_bundle import WIDTH

pytestmark = pytest.mark.anyio

ITEMS, INDEXED = 3_000, 2_000
FILE = f"vectors.f32{SUFFIX}"


@pytest.fixture(autouse=True)
def divided(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector_index, "MIN_INVERTED_ROWS", getattr(request, "param", INDEXED))
    monkeypatch.setattr(vector_index, "_LIST_ROWS", 16)


@pytest.fixture(scope="module")
def recommender(recommend_bundle: Bundle) -> Recommender:
    return load_recommender(recommend_bundle)


@pytest.fixture
def folder(recommend_bundle: Bundle, tmp_path: Path) -> Path:
    """With two catalogues of 20 clusters: one is large, the other just small enough."""
    rng = np.random.default_rng(2)
    for name, items in (("large", ITEMS), ("small", INDEXED)):
        clusters = rng.integers(0, 20, items)
        vectors = 2 * np.eye(20, WIDTH)[clusters] + 0.1 * rng.normal(size=(items, WIDTH))
        entries = [Item(f"i{number}", f"text {number}", {"even": number % 2 == 0}) for number in range(items)]
        rows = dict(zip((one.item_id for one in entries), vectors.astype(np.float32), strict=True))
        create_catalogue(tmp_path / "catalogues" / name, recommend_bundle.model_digest, WIDTH, entries, rows)
    return tmp_path


@pytest.fixture
async def catalogues(
    recommend_bundle: Bundle, recommender: Recommender, folder: Path
) -> AsyncIterator[CatalogueRegistry]:
    found = CatalogueRegistry(recommend_bundle, recommender, folder, INDEXED)
    await found.start()
    yield found
    await found.stop()


async def current(catalogues: CatalogueRegistry, name: str = "large") -> Snapshot:
    """When all that it began in the background is done."""
    await catalogues.snapshot(name)
    for thread in threading.enumerate():
        if thread.name == "index":
            thread.join()
    return await catalogues.snapshot(name)


def asked(snapshot: Snapshot, **more: Any) -> RankingQuery:
    history = [{"item_id": f"i{number}", "event": "purchase"} for number in (5, 70, 400)]
    return build_query(User.model_validate({"history": history, "exclude_history": True, **more}), snapshot, 0.0)


def names(recommender: Recommender, question: RankingQuery) -> list[str]:
    found = rank_query(recommender, question)
    assert isinstance(found, Ranking)
    rows = found.positions if question.candidates is None else question.candidates[found.positions]
    return [question.snapshot.ids[row] for row in rows]


def exact(question: RankingQuery) -> RankingQuery:
    return replace(question, snapshot=replace(question.snapshot, index=None))


async def put(
    catalogues: CatalogueRegistry, vectors: dict[str, np.ndarray], removed: list[str], text: str = "new"
) -> None:
    await catalogues.edit("large", [Item(name, text) for name in vectors], vectors, removed, np.inf)


async def test_a_large_catalogue_is_indexed_and_a_small_one_is_not(
    catalogues: CatalogueRegistry, recommender: Recommender, folder: Path
) -> None:
    large, small = await current(catalogues), await current(catalogues, "small")
    assert large.index is not None
    assert large.index.rows == ITEMS
    assert small.index is None
    assert (folder / "catalogues" / "large" / FILE).exists()
    assert not (folder / "catalogues" / "small" / FILE).exists()
    question = asked(large, top_k=10)
    assert question.index is large.index
    assert question.length < exact(question).length
    assert names(recommender, question) == names(recommender, exact(question))


@pytest.mark.parametrize("more", [{"filter": {"even": True}}, {"candidates": [{"item_id": "i3"}, {"item_id": "i4"}]}])
async def test_what_a_filter_leaves_and_candidates_are_all_looked_at(
    catalogues: CatalogueRegistry, recommender: Recommender, more: dict[str, Any]
) -> None:
    question = asked(await current(catalogues), **more)
    assert question.snapshot.index is not None
    assert not question.snapshot.index.exact
    assert question.index is None
    assert names(recommender, question) == names(recommender, exact(question))


async def test_newcomers_are_found_whatever_lists_they_are_in(
    catalogues: CatalogueRegistry, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the model had been trained with all of the catalogue but every 101st item."""
    monkeypatch.setattr(recommender, "catalogue_name", "large")
    known = {f"i{number}": number % 30 for number in range(ITEMS) if number % 101}
    monkeypatch.setattr(recommender, "ids", known)
    question = asked(await current(catalogues), min_new_items=20, top_k=25)
    assert question.index is not None
    asked_for: list[bool] = []
    nearest = VectorIndex.search

    def counted(index: VectorIndex, *given: Any) -> Any:
        asked_for.append(True)
        return nearest(index, *given)

    monkeypatch.setattr(VectorIndex, "search", counted)
    found = names(recommender, question)
    assert found == names(recommender, exact(question))
    assert len(set(found) - set(known)) == 20
    assert len(asked_for) == 1, "only of the whole catalogue"


async def test_many_excluded_items_are_left_out_of_all_products(catalogues: CatalogueRegistry) -> None:
    snapshot = await current(catalogues)
    history = [{"item_id": f"i{number}", "event": "view"} for number in range(1_200)]
    assert asked(snapshot, history=history).index is None


@pytest.mark.parametrize("divided", [ITEMS], indirect=True)
@pytest.mark.parametrize("more", [{}, {"filter": {"even": True}}, {"history": 1_200}])
async def test_one_list_misses_nothing_whatever_is_left_out(
    catalogues: CatalogueRegistry, recommender: Recommender, more: dict[str, Any]
) -> None:
    if "history" in more:
        more = {"history": [{"item_id": f"i{number}", "event": "view"} for number in range(more["history"])]}
    snapshot = await current(catalogues)
    assert snapshot.index is not None
    assert snapshot.index.exact
    question = asked(snapshot, top_k=100, **more)
    assert question.index is snapshot.index
    assert names(recommender, question) == names(recommender, exact(question))


async def test_ids_and_texts_of_a_small_catalogue_are_ranked_by_their_vectors(
    catalogues: CatalogueRegistry, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which are not multiplied anew for each request: where they are, the answer is the same."""
    texts = [{"text": f"text {number}"} for number in range(9)]
    known = [{"item_id": f"i{7 * number}"} for number in range(9)]
    candidates = [one for pair in zip(texts, known, strict=True) for one in pair]
    history = [
        {"item_id": "i5", "event": "view"},
        {"text": "text 3", "event": "cart"},
        {"item_id": "i70", "event": "view"},
    ]
    small = await current(catalogues, "small")
    question = asked(small, history=history, candidates=candidates, exclude_history=False, top_k=20)
    rng = np.random.default_rng(3)
    question = question.with_vectors([rng.normal(size=WIDTH).astype(np.float32) for _ in question.inline_items])
    found = rank_query(recommender, question)
    monkeypatch.setattr(ranking, "MIN_INDEX_ROWS", 0)
    expected = rank_query(recommender, question)
    assert isinstance(found, Ranking)
    assert isinstance(expected, Ranking)
    assert found.positions == expected.positions
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)


@pytest.mark.parametrize("name", ["small", "large"])
async def test_a_changed_item_is_ranked_by_what_it_is_now(
    catalogues: CatalogueRegistry, recommender: Recommender, folder: Path, name: str
) -> None:
    """By replicas that have ranked it before as by one that has not."""
    await current(catalogues, name)
    before = names(recommender, asked(await current(catalogues, name), top_k=100))
    first, last = before[0], before[-1]
    rows = (await current(catalogues, name)).vectors
    number_of = (await current(catalogues, name)).row_by_id
    swapped = {first: -rows[number_of[first]], last: rows[number_of[first]]}
    await catalogues.edit(name, [Item(one, "changed") for one in swapped], swapped, [], np.inf)
    after = await current(catalogues, name)
    found = names(recommender, asked(after, top_k=100))
    assert found[0] == last
    assert first not in found
    with closing(Catalogue(folder / "catalogues" / name)) as fresh:
        assert found == names(recommender, asked(fresh.snapshot(), top_k=100))


async def test_an_edit_counts_at_once_and_what_was_removed_never_comes_back(
    catalogues: CatalogueRegistry, recommender: Recommender
) -> None:
    before = await current(catalogues)
    first = names(recommender, asked(before, top_k=3))
    same = {f"new {name}": before.vectors[before.row_by_id[name]] for name in first}
    await put(catalogues, same, first)
    after = await current(catalogues)
    assert after.index is before.index
    assert sorted(names(recommender, asked(after, top_k=3))) == sorted(same)
    assert not set(first) & set(names(recommender, asked(after, top_k=100)))
    moved = {name: -5 * vector for name, vector in same.items()}
    await put(catalogues, moved, [], "changed")
    assert not set(moved) & set(names(recommender, asked(await current(catalogues), top_k=20)))


async def test_when_the_vectors_are_written_anew_so_is_the_index(
    catalogues: CatalogueRegistry, recommender: Recommender, folder: Path
) -> None:
    before = await current(catalogues)
    gone = [f"i{number}" for number in range(500, 1_500)]
    more = {f"new {number}": np.full(WIDTH, 0.1, np.float32) for number in range(500)}
    await put(catalogues, more, gone)  # too few rows are dead
    grown = await current(catalogues)
    assert grown.index is not None
    assert grown.index.rows == ITEMS + len(more), "of much that came later too"
    await put(catalogues, {}, [f"i{number}" for number in range(1_500, 1_800)])
    after = await current(catalogues)
    assert after.file != before.file
    assert after.rows == after.count == 2_200
    assert after.index is not None
    assert after.index.rows == after.rows
    assert sorted(path.name for path in (folder / "catalogues" / "large").glob("vectors*")) == [
        after.file,
        f"{after.file}{SUFFIX}",
    ]
    assert names(recommender, asked(after)) == names(recommender, exact(asked(after)))


async def test_replicas_build_it_once_and_those_that_come_later_read_it(
    recommend_bundle: Bundle, recommender: Recommender, folder: Path
) -> None:
    replicas = [CatalogueRegistry(recommend_bundle, recommender, folder, INDEXED) for _ in range(3)]
    for one in replicas:
        await one.snapshot("large")
    assert all([(await current(one)).index for one in replicas])
    inode = os.stat(folder / "catalogues" / "large" / FILE).st_ino
    later = CatalogueRegistry(recommend_bundle, recommender, folder, INDEXED)
    assert (await current(later)).index is not None
    assert os.stat(folder / "catalogues" / "large" / FILE).st_ino == inode
    for one in (*replicas, later):
        await one.stop()


async def test_another_processs_index_of_edits_not_read_here_yet_waits_for_them(
    recommend_bundle: Bundle, recommender: Recommender, folder: Path
) -> None:
    here, there = (CatalogueRegistry(recommend_bundle, recommender, folder, INDEXED) for _ in "ab")
    old = (await current(here)).index
    await put(there, {f"new {number}": np.full(WIDTH, 0.1, np.float32) for number in range(900)}, [])
    newer = (await current(there)).index
    assert newer is not None
    with closing(Catalogue(folder / "catalogues" / "large")) as opened:
        opened.snapshot()
        opened.attach_index("another.f32", newer)
        assert opened.snapshot().index is None
    assert old is not None
    assert (await current(here)).index is not old
    for one in (here, there):
        await one.stop()


async def test_without_room_for_it_all_products_are_taken(
    recommend_bundle: Bundle, recommender: Recommender, folder: Path
) -> None:
    catalogues = CatalogueRegistry(recommend_bundle, recommender, folder, INDEXED)
    with no_room(2**16):  # enough to open it
        snapshot = await current(catalogues)
    assert snapshot.index is None
    assert sorted(path.name for path in (folder / "catalogues" / "large").glob("*index*")) == []
    assert len(names(recommender, asked(snapshot))) == 10
    assert (await current(catalogues)).index is None, "it is not tried again at once"
    await catalogues.stop()
