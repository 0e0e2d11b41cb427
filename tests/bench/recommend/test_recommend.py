from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from models.bundle import load_bundle
from models.ranking.bundle_files import WEIGHTS, load_recommender
from models.ranking.events import History
from models.ranking.recommender import MAX_RERANKED
from tests.bench.recommend.plain import Plain
from tests.support.tiny_bundle import tiny_recommend_bundle

TOP_K = 10


@pytest.mark.parametrize("candidates", [MAX_RERANKED // 2, 5 * MAX_RERANKED])
def test_the_limit_ranks_like_the_service(tmp_path: Path, candidates: int) -> None:
    bundle = load_bundle(tiny_recommend_bundle(tmp_path / "bundle"))
    recommender, plain = load_recommender(bundle), Plain(load_file(bundle.path / WEIGHTS))
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(candidates, recommender.width)).astype(np.float32)
    items = rng.integers(0, candidates, 30)
    ages = np.sort(rng.exponential(60, 30))[::-1].astype(np.float32)
    training_indices = np.arange(candidates) % (len(recommender.ids) + 1) - 1
    history = History(vectors[items], items, rng.integers(0, 6, 30), ages, training_indices[items])
    rows = np.arange(candidates)
    for indices in (None, training_indices):
        expected = recommender.rank(history, vectors, rows, TOP_K, training_indices=indices)
        order, scores, weights = plain.rank(history, vectors, rows, TOP_K, indices)
        assert order.tolist() == expected.order.tolist()
        assert scores == pytest.approx(expected.scores, abs=1e-5)
        if indices is None:
            assert weights == pytest.approx(expected.weights, abs=1e-5)
