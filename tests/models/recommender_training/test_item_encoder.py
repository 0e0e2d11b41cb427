from __future__ import annotations

import numpy as np

from models.recommender_training.item_encoder import compute_co_occurrence


def test_co_occurrences_are_normalised_by_basket_size_and_item() -> None:
    counts = compute_co_occurrence([np.asarray([0, 1]), np.asarray([0, 1, 2]), np.asarray([3])], 4).toarray()
    np.testing.assert_allclose(counts[0], [0, 0.75, 0.25, 0])
    np.testing.assert_allclose(counts[2], [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(counts[3], 0)
