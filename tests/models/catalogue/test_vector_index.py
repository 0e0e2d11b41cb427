"""The index of a large catalogue: it proposes what all products would, and nothing depends on its being there."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.bundle import load_bundle as load_bundle
from models.catalogue import vector_index
from models.catalogue.vector_index import (
    RECALL,
    SUFFIX,
    VectorIndex,
    build_index,
    load_index,
    load_or_build,
    save_index,
)
from models.ranking.bundle_files import load_recommender
from models.ranking.events import EVENT_TYPES, History
from models.ranking.recommender import MAX_RERANKED, Recommender
from tests.support.tiny_bundle import tiny_recommend_bundle

ROWS, LIST_ROWS, USERS = 6_000, 32, 24
FILE = "vectors.f32"


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    return load_recommender(load_bundle(tiny_recommend_bundle(tmp_path_factory.mktemp("bundle"))))


@pytest.fixture(scope="module")
def vectors(recommender: Recommender) -> np.ndarray:
    """In 150 clusters."""
    rng = np.random.default_rng(2)
    middles = rng.normal(size=(150, recommender.width))
    spread = 0.3 * rng.normal(size=(ROWS, recommender.width))
    return (middles[rng.integers(0, 150, ROWS)] + spread).astype(np.float32)


@pytest.fixture(scope="module")
def index(recommender: Recommender, vectors: np.ndarray) -> VectorIndex:
    return build_index(vectors, *recommender.query_subspace(vectors), LIST_ROWS)


def histories(vectors: np.ndarray) -> list[History]:
    rng = np.random.default_rng(3)
    drawn = [rng.integers(0, len(vectors), 12) for _ in range(USERS)]
    kinds, ages = np.full(12, EVENT_TYPES.index("purchase")), np.arange(12, 0, -1).astype(np.float32)
    return [History(vectors[items], items, kinds, ages) for items in drawn]


def without(history: History, rows: int) -> np.ndarray:
    allowed = np.ones(rows, np.bool_)
    allowed[history.items] = False
    return allowed


def test_almost_all_is_found_that_all_products_find(
    recommender: Recommender, vectors: np.ndarray, index: VectorIndex
) -> None:
    assert index.probes > 1
    assert index.recall >= RECALL
    found = []
    for one in histories(vectors):
        allowed = without(one, ROWS)
        exact = recommender.rank(one, vectors, None, 10, allowed)
        near = recommender.rank(one, vectors, None, 10, allowed, index=index)
        found.append(len(np.intersect1d(exact.order, near.order)) / 10)
        if exact.order.tolist() == near.order.tolist():
            np.testing.assert_allclose(near.scores, exact.scores, rtol=1e-5)
            np.testing.assert_allclose(near.weights, exact.weights, atol=1e-5)
    assert np.mean(found) >= RECALL


def test_tastes_lie_in_the_span_so_that_all_lists_give_what_all_products_give(
    recommender: Recommender, vectors: np.ndarray, index: VectorIndex
) -> None:
    whole = replace(index, probes=1)
    for one in histories(vectors):
        exact, near = (recommender.rank(one, vectors, None, 50, index=how) for how in (None, whole))
        assert exact.order.tolist() == near.order.tolist()
        np.testing.assert_allclose(near.scores, exact.scores, rtol=1e-5)


def test_few_vectors_are_one_list_in_which_nothing_is_missed(
    recommender: Recommender, vectors: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = build_index(vectors, *recommender.query_subspace(vectors))
    assert whole.exact
    assert whole.recall == 1
    assert whole.order.tolist() == list(range(ROWS))
    assert whole.cost(ROWS + 10) < ROWS
    for one in histories(vectors):
        allowed = without(one, ROWS)
        exact, near = (recommender.rank(one, vectors, None, 100, allowed, index=how) for how in (None, whole))
        assert exact.order.tolist() == near.order.tolist()
        np.testing.assert_array_equal(near.scores, exact.scores)
    monkeypatch.setattr(vector_index, "MIN_INVERTED_ROWS", ROWS - 1)
    assert len(build_index(vectors, *recommender.query_subspace(vectors)).centres) > 1


def test_vectors_that_no_lists_divide_are_all_looked_through(recommender: Recommender) -> None:
    noise = np.random.default_rng(5).normal(size=(ROWS, recommender.width)).astype(np.float32)
    found = build_index(noise, *recommender.query_subspace(noise), 1_500)
    assert found.probes == 1
    assert found.recall == 1


def test_what_came_after_the_index_is_found_and_what_is_not_allowed_is_not(
    recommender: Recommender, vectors: np.ndarray, index: VectorIndex
) -> None:
    for one in histories(vectors):
        best = recommender.rank(one, vectors, None, 5, index=index).order
        longer = np.concatenate([vectors, vectors[best[:1]]])
        allowed = np.ones(len(longer), np.bool_)
        allowed[best] = False
        found = recommender.rank(one, longer, None, 5, allowed, index=index).order
        assert not np.isin(best, found).any()
        assert recommender.rank(one, longer, None, 6, index=index).order.max() == ROWS or np.isin(best[:1], one.items)


def test_neighbours_that_no_taste_would_find_are_looked_at(
    recommender: Recommender, vectors: np.ndarray, index: VectorIndex
) -> None:
    one = histories(vectors)[0]
    trained = np.full(ROWS, -1)
    known = len(recommender.ids)
    last = np.argsort(vectors @ recommender._reading.encode(one)[0])[: known - 1]
    trained[one.items[0]], trained[last] = 0, np.arange(1, known)
    one = replace(one, training_indices=trained[one.items])
    loud = Recommender(
        {**recommender._w, "nearness": np.full_like(recommender._w["nearness"], 50)},
        recommender.catalogue_name,
        recommender.ids,
    )
    exact, near = (loud.rank(one, vectors, None, 3, None, trained, how) for how in (None, index))
    assert np.isin(near.order, last).any()
    assert near.order.tolist() == exact.order.tolist()


def test_where_too_few_are_allowed_in_its_lists_all_products_are_taken(
    recommender: Recommender, vectors: np.ndarray, index: VectorIndex
) -> None:
    one = histories(vectors)[0]
    allowed = np.zeros(ROWS, np.bool_)
    allowed[np.argsort(vectors @ recommender._reading.encode(one)[0])[:MAX_RERANKED]] = True
    exact, near = (recommender.rank(one, vectors, None, 10, allowed, index=how) for how in (None, index))
    assert near.order.tolist() == exact.order.tolist()


def test_it_is_built_once_and_anew_when_much_came_after(
    recommender: Recommender, vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / FILE).touch()
    how = recommender.query_subspace(vectors)
    built: list[int] = []

    def counted(vectors: np.ndarray, basis: np.ndarray, tastes: np.ndarray, list_rows: int) -> VectorIndex:
        built.append(len(vectors))
        return build_index(vectors, basis, tastes, list_rows)

    monkeypatch.setattr(vector_index, "build_index", counted)
    threads = [
        threading.Thread(target=load_or_build, args=(tmp_path, FILE, vectors[:5_000], *how, LIST_ROWS)) for _ in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load_or_build(tmp_path, FILE, vectors[:5_500], *how, LIST_ROWS).rows == 5_000
    assert load_or_build(tmp_path, FILE, vectors, *how, LIST_ROWS).rows == ROWS
    assert built == [5_000, ROWS]
    assert sorted(os.listdir(tmp_path)) == [FILE, FILE + SUFFIX]


def test_one_for_vectors_that_are_gone_is_not_kept(
    recommender: Recommender, vectors: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError):
        load_or_build(tmp_path, FILE, vectors[:1_000], *recommender.query_subspace(vectors), LIST_ROWS)
    assert os.listdir(tmp_path) == []


def test_what_is_read_is_what_was_written(index: VectorIndex, tmp_path: Path) -> None:
    save_index(tmp_path / "a.index", index)
    found = load_index(tmp_path / "a.index")
    assert found is not None
    for name in ("basis", "centres", "starts", "order", "coordinates"):
        np.testing.assert_array_equal(getattr(found, name), getattr(index, name))
    assert (found.probes, found.recall) == (index.probes, index.recall)


@pytest.mark.parametrize("place", [0, 1, 20, 400, 4_000, -1])
def test_a_damaged_one_is_as_good_as_none_and_built_anew(
    index: VectorIndex, recommender: Recommender, vectors: np.ndarray, tmp_path: Path, place: int
) -> None:
    path = tmp_path / f"{FILE}{SUFFIX}"
    (tmp_path / FILE).touch()
    save_index(path, index)
    content = bytearray(path.read_bytes())
    content[place] ^= 0x11
    path.write_bytes(content)
    assert load_index(path) is None
    path.write_bytes(content[: len(content) // 2])
    assert load_index(path) is None
    path.write_bytes(b"")
    assert load_index(path) is None
    assert load_index(tmp_path / "none") is None
    assert load_or_build(tmp_path, FILE, vectors, *recommender.query_subspace(vectors), LIST_ROWS).rows == ROWS
    assert load_index(path) is not None
