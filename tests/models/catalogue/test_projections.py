"""Projections of item vectors: they rank as whole vectors do, and the cache adds rows that come later."""

from __future__ import annotations

import numpy as np
import pytest

from models.bundle import load_bundle
from models.catalogue.projections import Array, ItemProjections, ProjectionCache, ProjectionView
from models.ranking.bundle_files import load_recommender
from models.ranking.events import DISLIKE, EVENT_TYPES, History
from models.ranking.recommender import MAX_RERANKED, Recommender
from tests.support.tiny_bundle import tiny_recommend_bundle

ROWS = 3 * MAX_RERANKED


@pytest.fixture(scope="module")
def recommender(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    return load_recommender(load_bundle(tiny_recommend_bundle(tmp_path_factory.mktemp("bundle"))))


@pytest.fixture(scope="module")
def vectors(recommender: Recommender) -> Array:
    return np.random.default_rng(3).normal(size=(ROWS, recommender.width)).astype(np.float32)


@pytest.mark.parametrize("candidates", [None, MAX_RERANKED // 2, 2 * MAX_RERANKED])
@pytest.mark.parametrize("disliked", [False, True])
def test_projected_vectors_rank_like_whole_vectors(
    recommender: Recommender, vectors: Array, candidates: int | None, disliked: bool
) -> None:
    rng = np.random.default_rng(4)
    items, kinds = rng.integers(0, ROWS, 30), rng.integers(0, len(EVENT_TYPES), 30)
    if disliked:
        kinds[::4] = DISLIKE
    ages = np.sort(rng.exponential(60, 30))[::-1].astype(np.float32)
    projected = recommender.project(vectors)
    rows = None if candidates is None else rng.permutation(ROWS)[:candidates]
    candidate_vectors = vectors if rows is None else vectors[rows]
    expected = recommender.rank(History(vectors[items], items, kinds, ages), candidate_vectors, rows, 20)
    history = History(ProjectionView(projected, items), items, kinds, ages)
    ranked = recommender.rank(history, ProjectionView(projected, rows), rows, 20)
    assert ranked.order.tolist() == expected.order.tolist()
    np.testing.assert_allclose(ranked.scores, expected.scores, atol=1e-5)
    np.testing.assert_allclose(ranked.weights, expected.weights, atol=1e-5)


def test_cache_projects_each_row_once(recommender: Recommender, vectors: Array) -> None:
    projected: list[int] = []

    def count_and_project(rows: Array) -> ItemProjections:
        projected.append(len(rows))
        return recommender.project(rows)

    cache = ProjectionCache()
    for rows in (100, 100, 130, 100, 130):
        cached, expected = cache.get(vectors[:rows], count_and_project), recommender.project(vectors[:rows])
        for name in ("coordinates", "queries", "inputs"):
            np.testing.assert_allclose(getattr(cached, name), getattr(expected, name), atol=1e-5)
    assert projected == [100, 30]


def test_ranking_a_history_of_all_items_does_not_change_projections(recommender: Recommender, vectors: Array) -> None:
    projected = recommender.project(vectors)
    before = projected.inputs.copy()
    items, kinds = np.arange(len(vectors)), np.zeros(len(vectors), np.int64)
    history = History(ProjectionView(projected), items, kinds, np.zeros(len(vectors), np.float32))
    recommender.rank(history, ProjectionView(projected), None, 5)
    np.testing.assert_array_equal(projected.inputs, before)
