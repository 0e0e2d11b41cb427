from __future__ import annotations

import numpy as np
import pytest

from models.catalogue.top_k import top_k

COUNT = 400


@pytest.mark.parametrize("spread", ["random", "sorted", "equal", "masked"])
@pytest.mark.parametrize("count", [1_000, 100_000])
def test_top_k_returns_the_largest_scores(count: int, spread: str) -> None:
    scores = np.random.default_rng(6).normal(size=count).astype(np.float32)
    if spread == "sorted":
        scores.sort()
    elif spread == "equal":
        scores[:] = 1
    elif spread == "masked":
        scores[500:] = -np.inf
    best = top_k(scores, COUNT)
    assert len(set(best.tolist())) == COUNT
    assert sorted(scores[best]) == sorted(np.sort(scores)[-COUNT:])
