"""Libraries get the same data as Heed and rank every item once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.data.interactions import Split
from tests.bench.recommend_quality.methods import (
    PYTHON,
    Method,
    ease,
    matrices,
    sasrec,
    save,
    sequences,
    simple,
    slit_and_slist,
)
from tests.support.tiny_baskets import ITEMS


def test_peers_get_all_training_data_and_the_ranked_users(split: Split, tmp_path: Path) -> None:
    save(split, tmp_path / "split.npz")
    arrays = np.load(tmp_path / "split.npz")
    assert arrays["items"].tolist() == [0, 1, 1, 2, 3, 3, 4, 5, 4]
    assert arrays["offsets"].tolist() == [0, 4, 7, 9]
    assert arrays["asked"].tolist() == [0, 1]
    assert arrays["item_count"] == ITEMS


def test_names_of_methods_are_unique() -> None:
    names = [method.name for method in [*simple(), ease(), *slit_and_slist(), *matrices()]]
    assert len(set(names)) == len(names)


@pytest.mark.skipif(not PYTHON.exists(), reason="needs make .venv/bench-recommend/installed")
@pytest.mark.parametrize("method", [next(matrices()), sasrec((1,), batch_size=(2,))])
def test_a_library_ranks_every_item_once(split: Split, method: Method) -> None:
    small = {"n_factors": 4, "n_heads": 1, "session_max_len": 4}
    first = {**method.settings[0], **(small if "epochs" in method.settings[0] else {})}
    ((used_setting, rankings),) = method.rank(split, first)
    assert used_setting == first | ({"epochs": [1]} if "epochs" in first else {})
    assert np.sort(rankings, axis=1).tolist() == [list(range(ITEMS))] * 2


@pytest.mark.skipif(not PYTHON.exists(), reason="needs make .venv/bench-recommend/installed")
def test_rankings_at_an_epoch_equal_those_of_a_shorter_training(split: Split) -> None:
    (setting,) = sasrec((1, 3), batch_size=(1,), n_factors=(4,), n_heads=(1,), session_max_len=(4,), lr=(0.1,)).settings
    (_, _), (last_setting, after) = sequences(split, setting)
    ((_, alone),) = sequences(split, last_setting)
    assert after.tolist() == alone.tolist()
