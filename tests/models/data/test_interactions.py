from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.data.interactions import (
    MOVIELENS,
    Interactions,
    draw_removed_items,
    hold_out_last,
    read_movielens,
    read_online_retail,
    remove_items,
    sequence_of,
)


def purchases(*users: list[list[int]], items: int = 6) -> Interactions:
    """Each user's baskets, a day apart."""
    names = tuple(str(item) for item in range(items))
    trails = {
        f"u{number}": sequence_of(
            [(86400.0 * day, dict.fromkeys(basket, np.nan)) for day, basket in enumerate(baskets)]
        )
        for number, baskets in enumerate(users)
    }
    return Interactions("purchase", names, names, trails)


def lists(arrays: tuple[NDArray[np.int64], ...]) -> list[list[int]]:
    return [array.tolist() for array in arrays]


def retail(folder: Path, *rows: str) -> Interactions:
    with gzip.open(folder / "items.jsonl.gz", "wt", encoding="utf-8") as file:
        for item, text in (("85123A", "White hanging heart"), ("71053", "White metal lantern")):
            file.write(json.dumps({"item_id": item, "text": text, "median_price": 1.0}) + "\n")
    with gzip.open(folder / "interactions.csv.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(("user_id,item_id,timestamp,invoice,quantity", *rows)) + "\n")
    return read_online_retail(folder)


def test_an_item_twice_on_one_invoice_is_one_event(tmp_path: Path) -> None:
    found = retail(
        tmp_path,
        "7,71053,2010-12-01 08:26:00,536365,6",
        "7,85123A,2010-12-01 08:26:00,536365,6",
        "7,71053,2010-12-01 08:26:00,536365,2",
    )
    trail = found.users["7"]
    assert found.texts == ("White hanging heart", "White metal lantern")
    assert trail.items.tolist() == [1, 0]
    assert trail.times.tolist() == [1291191960.0] * 2


def test_invoices_are_sorted_by_time_and_stay_apart_at_one_time(tmp_path: Path) -> None:
    found = retail(
        tmp_path,
        "7,71053,2010-12-02 10:00:00,3,1",
        "7,85123A,2010-12-01 10:00:00,1,1",
        "7,71053,2010-12-01 10:00:00,2,1",
    )
    trail = found.users["7"]
    assert trail.items.tolist() == [0, 1, 1]
    assert trail.baskets.tolist() == [0, 1, 2]
    assert [basket.tolist() for basket in trail.each_basket()] == [[0], [1], [1]]


def test_the_last_basket_is_asked_for_and_all_else_is_training() -> None:
    split = hold_out_last(purchases([[0, 1], [1, 2], [2, 3, 0]], [[4, 5]]))
    assert split.users == ("u0",)
    assert lists(split.targets) == [[2, 3, 0]]
    assert split.training.users["u0"].items.tolist() == [0, 1, 1, 2]
    assert split.training.users["u1"].items.tolist() == [4, 5]
    assert lists(split.owned) == [[0, 1, 2]]


def test_the_inner_split_never_sees_the_last_basket() -> None:
    inner = hold_out_last(hold_out_last(purchases([[0], [1], [2]], [[3], [4]], [[5]])).training)
    assert inner.users == ("u0",)
    assert lists(inner.targets) == [[1]]
    assert {user: trail.items.tolist() for user, trail in inner.training.users.items()} == {
        "u0": [0],
        "u1": [3],
        "u2": [5],
    }


def test_what_the_user_had_and_what_is_new_are_asked_apart() -> None:
    split = hold_out_last(purchases([[0, 1], [1, 2]], [[3], [3]], [[4], [5]]))
    assert (split.repeat_targets().users, lists(split.repeat_targets().targets)) == (("u0", "u1"), [[1], [3]])
    assert (split.novel_targets().users, lists(split.novel_targets().targets)) == (("u0", "u2"), [[2], [5]])
    assert split.novel_targets().training is split.training


def test_removed_items_are_in_no_history_and_are_all_that_is_asked_for() -> None:
    users: list[list[list[int]]] = [[[item, 9], [item, 9, (item + 1) % 9]] for item in range(9)]
    removed = draw_removed_items(10, 0.3, seed=4)
    assert len(removed) == 3
    split = remove_items(hold_out_last(purchases(*users, items=10)), removed)
    for trail in split.training.users.values():
        assert not np.isin(trail.items, removed).any()
    assert split.users
    for target in split.targets:
        assert np.isin(target, removed).all()


@pytest.mark.parametrize("one", [0, 1])
def test_a_user_left_without_history_is_not_asked(one: int) -> None:
    interactions = purchases([[0], [0, 1]], [[1], [0]], items=2)
    split = remove_items(hold_out_last(interactions), np.asarray([one]))
    assert split.users == (("u1",), ("u0",))[one]
    assert lists(split.targets) == [[one]]
    assert set(split.training.users) == set(split.users)


def test_baskets_count_from_zero_after_some_are_taken() -> None:
    trail = sequence_of([(0.0, {0: np.nan}), (1.0, {1: np.nan, 2: np.nan}), (2.0, {3: np.nan})])
    assert trail.take(trail.items > 0).baskets.tolist() == [0, 0, 1]


@pytest.mark.parametrize("packed", [True, False], ids=["wheel", "folder"])
def test_movielens_is_read_from_the_wheel_and_from_its_folder(tmp_path: Path, packed: bool) -> None:
    parts = {
        "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Children's\n2\t\"Quoted\t1996\tDrama\n",
        "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "196\t2\t3\t881250950\n196\t1\t5\t881250949\n22\t1\t1\t878887116\n22\t2\t4\t878887116\n",
    }
    wheel = tmp_path / "recbole.whl" if packed else tmp_path
    for ending, text in parts.items():
        name = f"{MOVIELENS}.{ending}"
        if packed:
            with zipfile.ZipFile(wheel, "a") as archive:
                archive.writestr(name, text)
        else:
            (wheel / name).parent.mkdir(parents=True, exist_ok=True)
            (wheel / name).write_text(text)
    found = read_movielens(wheel)
    assert found.texts == ("Toy Story (1995): Animation Children's", '"Quoted (1996): Drama')
    assert found.users["196"].items.tolist() == [0, 1]
    assert found.users["196"].values.tolist() == [5, 3]
    assert found.users["22"].items.tolist() == [0, 1], "ratings of one second stay in order"
    assert lists(hold_out_last(found).targets) == [[1], [1]]
