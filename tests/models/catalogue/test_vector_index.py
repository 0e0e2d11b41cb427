"""The index of a large catalogue: it selects what all products would, and ranking works without it."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.bundle import load_bundle
from models.catalogue import vector_index
from models.catalogue.vector_index import (
    MIN_INVERTED_ROWS,
    MIN_RECALL,
    SUFFIX,
    VectorIndex,
    build_index,
    default_list_rows,
    load_index,
    load_or_build,
    save_index,
)
from models.ranking.bundle_files import load_recommender
from models.ranking.events import EVENT_TYPES, History
from models.ranking.recommender import MAX_RERANKED, Recommender
from tests.support.odd_files import ODD_FILES, make_odd
from tests.support.tiny_bundle import tiny_recommend_bundle

ROWS, LIST_ROWS, USERS = 6_000, 32, 24
FILE = "vectors.f32"


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    return load_recommender(load_bundle(tiny_recommend_bundle(tmp_path_factory.mktemp("bundle"))))


@pytest.fixture(scope="module")
def vectors(recommender: Recommender) -> np.ndarray:
    """Item vectors in 150 clusters."""
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(150, recommender.width))
    spread = 0.3 * rng.normal(size=(ROWS, recommender.width))
    return (centres[rng.integers(0, 150, ROWS)] + spread).astype(np.float32)


@pytest.fixture(scope="module")
def index(recommender: Recommender, vectors: np.ndarray) -> VectorIndex:
    return build_index(vectors, *recommender.query_subspace(vectors), LIST_ROWS)


def histories(vectors: np.ndarray) -> list[History]:
    rng = np.random.default_rng(3)
    drawn = [rng.integers(0, len(vectors), 12) for _ in range(USERS)]
    kinds, ages = np.full(12, EVENT_TYPES.index("purchase")), np.arange(12, 0, -1).astype(np.float32)
    return [History(vectors[items], items, kinds, ages) for items in drawn]


def allow_others(history: History, rows: int) -> np.ndarray:
    allowed = np.ones(rows, np.bool_)
    allowed[history.items] = False
    return allowed


def test_index_reaches_the_recall_that_it_promises(
    recommender: Recommender, vectors: np.ndarray, index: VectorIndex
) -> None:
    assert index.probes > 1
    assert index.recall >= MIN_RECALL
    recalls = []
    for history in histories(vectors):
        allowed = allow_others(history, ROWS)
        exact = recommender.rank(history, vectors, None, 10, allowed)
        near = recommender.rank(history, vectors, None, 10, allowed, index=index)
        recalls.append(len(np.intersect1d(exact.order, near.order)) / 10)
        if exact.order.tolist() == near.order.tolist():
            np.testing.assert_allclose(near.scores, exact.scores, rtol=1e-5)
            np.testing.assert_allclose(near.weights, exact.weights, atol=1e-5)
    assert np.mean(recalls) >= MIN_RECALL


def test_probing_all_lists_equals_scoring_all_vectors(
    recommender: Recommender, vectors: np.ndarray, index: VectorIndex
) -> None:
    whole = replace(index, probes=1)
    for history in histories(vectors):
        exact, near = (recommender.rank(history, vectors, None, 50, index=searched) for searched in (None, whole))
        assert exact.order.tolist() == near.order.tolist()
        np.testing.assert_allclose(near.scores, exact.scores, rtol=1e-5)


def test_few_vectors_form_one_list_that_misses_nothing(recommender: Recommender, vectors: np.ndarray) -> None:
    whole = build_index(vectors, *recommender.query_subspace(vectors))
    assert whole.exact
    assert whole.recall == 1
    assert whole.order.tolist() == list(range(ROWS))
    assert whole.cost(ROWS + 10) < ROWS
    for history in histories(vectors):
        allowed = allow_others(history, ROWS)
        exact, near = (
            recommender.rank(history, vectors, None, 100, allowed, index=searched) for searched in (None, whole)
        )
        assert exact.order.tolist() == near.order.tolist()
        np.testing.assert_array_equal(near.scores, exact.scores)


def test_many_vectors_are_divided_into_lists() -> None:
    assert default_list_rows(MIN_INVERTED_ROWS) == MIN_INVERTED_ROWS
    assert default_list_rows(MIN_INVERTED_ROWS + 1) < MIN_INVERTED_ROWS / 100


def test_all_lists_are_probed_if_vectors_have_no_clusters(recommender: Recommender) -> None:
    noise = np.random.default_rng(5).normal(size=(ROWS, recommender.width)).astype(np.float32)
    index = build_index(noise, *recommender.query_subspace(noise), 1_500)
    assert index.probes == 1
    assert index.recall == 1


def test_search_covers_later_rows_and_obeys_the_mask(
    recommender: Recommender, vectors: np.ndarray, index: VectorIndex
) -> None:
    for history in histories(vectors):
        best = recommender.rank(history, vectors, None, 5, index=index).order
        longer = np.concatenate([vectors, vectors[best[:1]]])
        allowed = np.ones(len(longer), np.bool_)
        allowed[best] = False
        order = recommender.rank(history, longer, None, 5, allowed, index=index).order
        assert not np.isin(best, order).any()
        order = recommender.rank(history, longer, None, 6, index=index).order
        assert order.max() == ROWS or np.isin(best[:1], history.items)


def test_strong_neighbours_are_ranked_wherever_the_user_vector_puts_them(
    recommender: Recommender, vectors: np.ndarray, index: VectorIndex
) -> None:
    history = histories(vectors)[0]
    indices = np.full(ROWS, -1)
    known = len(recommender.ids)
    last = np.argsort(vectors @ recommender.encoder.encode(history)[0])[: known - 1]
    indices[history.items[0]], indices[last] = 0, np.arange(1, known)
    history = replace(history, training_indices=indices[history.items])
    amplified = Recommender(
        {**recommender.weights, "nearness": np.full_like(recommender.weights["nearness"], 50)},
        recommender.catalogue_name,
        recommender.ids,
    )
    exact, near = (amplified.rank(history, vectors, None, 3, None, indices, searched) for searched in (None, index))
    assert np.isin(near.order, last).any()
    assert near.order.tolist() == exact.order.tolist()


def test_all_vectors_are_scored_if_probed_lists_have_too_few_allowed_rows(
    recommender: Recommender, vectors: np.ndarray, index: VectorIndex
) -> None:
    history = histories(vectors)[0]
    allowed = np.zeros(ROWS, np.bool_)
    allowed[np.argsort(vectors @ recommender.encoder.encode(history)[0])[:MAX_RERANKED]] = True
    exact, near = (recommender.rank(history, vectors, None, 10, allowed, index=searched) for searched in (None, index))
    assert near.order.tolist() == exact.order.tolist()


def test_index_is_built_once_and_rebuilt_after_many_new_rows(
    recommender: Recommender, vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / FILE).touch()
    subspace = recommender.query_subspace(vectors)
    built: list[int] = []

    def count_and_build(
        vectors: np.ndarray, basis: np.ndarray, user_vectors: np.ndarray, list_rows: int
    ) -> VectorIndex:
        built.append(len(vectors))
        return build_index(vectors, basis, user_vectors, list_rows)

    monkeypatch.setattr(vector_index, "build_index", count_and_build)
    threads = [
        threading.Thread(target=load_or_build, args=(tmp_path, FILE, vectors[:5_000], *subspace, LIST_ROWS))
        for _ in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert load_or_build(tmp_path, FILE, vectors[:5_500], *subspace, LIST_ROWS).rows == 5_000
    assert load_or_build(tmp_path, FILE, vectors, *subspace, LIST_ROWS).rows == ROWS
    assert built == [5_000, ROWS]
    assert sorted(os.listdir(tmp_path)) == [FILE, FILE + SUFFIX]


def test_index_of_removed_vectors_is_not_saved(recommender: Recommender, vectors: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_or_build(tmp_path, FILE, vectors[:1_000], *recommender.query_subspace(vectors), LIST_ROWS)
    assert os.listdir(tmp_path) == []


def test_saved_index_is_loaded_unchanged(index: VectorIndex, tmp_path: Path) -> None:
    save_index(tmp_path / "a.index", index)
    loaded = load_index(tmp_path / "a.index")
    assert loaded is not None
    for name in ("basis", "centres", "starts", "order", "coordinates"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(index, name))
    assert (loaded.probes, loaded.recall) == (index.probes, index.recall)


@pytest.mark.slow
@pytest.mark.parametrize("offset", [0, 1, 20, 400, 4_000, -1])
def test_damaged_index_is_ignored_and_rebuilt(
    index: VectorIndex, recommender: Recommender, vectors: np.ndarray, tmp_path: Path, offset: int
) -> None:
    path = tmp_path / f"{FILE}{SUFFIX}"
    (tmp_path / FILE).touch()
    save_index(path, index)
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x11
    path.write_bytes(content)
    assert load_index(path) is None
    path.write_bytes(content[: len(content) // 2])
    assert load_index(path) is None
    path.write_bytes(b"")
    assert load_index(path) is None
    assert load_index(tmp_path / "none") is None
    assert load_or_build(tmp_path, FILE, vectors, *recommender.query_subspace(vectors), LIST_ROWS).rows == ROWS
    assert load_index(path) is not None


@pytest.mark.parametrize("name", ["basis", "centres", "coordinates"])
def test_an_index_with_a_number_that_is_not_finite_is_no_index(index: VectorIndex, tmp_path: Path, name: str) -> None:
    damaged = getattr(index, name).copy()
    damaged[0, 0] = np.nan
    save_index(tmp_path / f"{FILE}{SUFFIX}", replace(index, **{name: damaged}))
    assert load_index(tmp_path / f"{FILE}{SUFFIX}") is None


@pytest.mark.parametrize("kind", ODD_FILES)
def test_a_thing_that_is_no_file_is_no_index(kind: str, tmp_path: Path) -> None:
    make_odd(kind, tmp_path / f"{FILE}{SUFFIX}")
    assert load_index(tmp_path / f"{FILE}{SUFFIX}") is None
