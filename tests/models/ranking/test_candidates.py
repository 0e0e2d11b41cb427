from __future__ import annotations

import numpy as np

from models.ranking.candidates import preselect

COUNT = 400


def test_candidates_without_item_numbers_are_numbered_by_position() -> None:
    scores, history_items = np.arange(2_000, dtype=np.float32), np.asarray([-1, 7, 7, 2_500])
    expected = [7, *range(1_600, 2_000)]
    assert preselect(scores, None, history_items, COUNT).tolist() == expected
    assert preselect(scores, np.arange(2_000), history_items, COUNT).tolist() == expected
