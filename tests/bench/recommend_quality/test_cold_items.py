"""Cold items get a minimum of places, and a table of their own."""

from __future__ import annotations

import numpy as np

from models.data.interactions import hold_out_last, remove_items
from tests.bench.recommend_quality.cold_items import add_cold_targets, promote_cold_items, render_lines
from tests.support.tiny_baskets import interactions


def test_cold_items_replace_the_last_places_up_to_the_minimum() -> None:
    rankings = np.asarray([[0, 4, 1, 2, 5, 3], [4, 5, 0, 1, 2, 3], [0, 1, 2, -1, -1, -1]])
    new = np.asarray([4, 5])
    assert promote_cold_items(rankings, new, 0, 3).tolist() == [[0, 4, 1], [4, 5, 0], [0, 1, 2]]
    assert promote_cold_items(rankings, new, 2, 3).tolist() == [[0, 4, 5], [4, 5, 0], [0, 1, 2]]
    assert promote_cold_items(rankings, new, 3, 4).tolist() == [[0, 4, 1, 5], [4, 5, 0, 1], [0, 1, 2, -1]]


def test_the_table_of_cold_items_has_rows_for_each_method() -> None:
    held_out = hold_out_last(interactions([[0, 4], [4, 1]], [[1], [2]], [[4], [5]]))
    removed = remove_items(held_out, np.asarray([4]))
    all_targets = add_cold_targets(removed, held_out)
    assert (removed.users, all_targets.users) == (("u0",), ("u0", "u1"))
    assert [items.tolist() for items in all_targets.targets] == [[4, 1], [2]]
    rankings = np.asarray([[0, 1, 2, 3, 5, 4], [1, 2, 0, 3, 5, 4]])
    table = list(render_lines(removed, all_targets, np.asarray([4]), {"Heed": rankings}))
    row = [cell.strip() for cell in table[4].split("|")[1:-1]]
    assert row[:4] == ["Heed", "0", "1.0000", "1.0000"]
    assert row[-1] == "1.00"
    assert len(table) == 4 + 6 + 2
