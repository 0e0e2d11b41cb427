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
    make_sequence,
    read_movielens,
    read_online_retail,
    remove_items,
)


def purchases(*users: list[list[int]], items: int = 6) -> Interactions:
    """Return the baskets of each user, a day apart."""
    names = tuple(str(item) for item in range(items))
    sequences = {
        f"u{index}": make_sequence(
            [(86400.0 * day, dict.fromkeys(basket, np.nan)) for day, basket in enumerate(baskets)]
        )
        for index, baskets in enumerate(users)
    }
    return Interactions("purchase", names, names, sequences)


def lists(arrays: tuple[NDArray[np.int64], ...]) -> list[list[int]]:
    return [array.tolist() for array in arrays]


def retail(folder: Path, *rows: str) -> Interactions:
    with gzip.open(folder / "items.jsonl.gz", "wt", encoding="utf-8") as file:
        for item, text in (("85123A", "White hanging heart"), ("71053", "White metal lantern")):
            file.write(json.dumps({"item_id": item, "text": text, "median_price": 1.0}) + "\n")
    with gzip.open(folder / "interactions.csv.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(("user_id,item_id,timestamp,invoice,quantity", *rows)) + "\n")
    return read_online_retail(folder)


def test_a_repeated_item_of_an_invoice_is_a_single_event(tmp_path: Path) -> None:
    interactions = retail(
        tmp_path,
        "7,71053,2010-12-01 08:26:00,536365,6",
        "7,85123A,2010-12-01 08:26:00,536365,6",
        "7,71053,2010-12-01 08:26:00,536365,2",
    )
    sequence = interactions.users["7"]
    assert interactions.texts == ("White hanging heart", "White metal lantern")
    assert sequence.items.tolist() == [1, 0]
    assert sequence.times.tolist() == [1291191960.0] * 2


def test_invoices_are_sorted_by_time_and_simultaneous_invoices_stay_separate(tmp_path: Path) -> None:
    interactions = retail(
        tmp_path,
        "7,71053,2010-12-02 10:00:00,3,1",
        "7,85123A,2010-12-01 10:00:00,1,1",
        "7,71053,2010-12-01 10:00:00,2,1",
    )
    sequence = interactions.users["7"]
    assert sequence.items.tolist() == [0, 1, 1]
    assert sequence.baskets.tolist() == [0, 1, 2]
    assert [basket.tolist() for basket in sequence.each_basket()] == [[0], [1], [1]]


def test_the_last_basket_is_held_out_and_the_rest_is_for_training() -> None:
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
    assert {user: sequence.items.tolist() for user, sequence in inner.training.users.items()} == {
        "u0": [0],
        "u1": [3],
        "u2": [5],
    }


def test_targets_split_into_repeated_and_novel_items() -> None:
    split = hold_out_last(purchases([[0, 1], [1, 2]], [[3], [3]], [[4], [5]]))
    assert (split.repeat_targets().users, lists(split.repeat_targets().targets)) == (("u0", "u1"), [[1], [3]])
    assert (split.novel_targets().users, lists(split.novel_targets().targets)) == (("u0", "u2"), [[2], [5]])
    assert split.novel_targets().training is split.training


def test_removed_items_are_in_no_history_and_are_the_only_targets() -> None:
    users: list[list[list[int]]] = [[[item, 9], [item, 9, (item + 1) % 9]] for item in range(9)]
    removed = draw_removed_items(10, 0.3, seed=4)
    assert len(removed) == 3
    split = remove_items(hold_out_last(purchases(*users, items=10)), removed)
    for sequence in split.training.users.values():
        assert not np.isin(sequence.items, removed).any()
    assert split.users
    for target in split.targets:
        assert np.isin(target, removed).all()


@pytest.mark.parametrize("item", [0, 1])
def test_a_user_without_remaining_history_is_left_out(item: int) -> None:
    interactions = purchases([[0], [0, 1]], [[1], [0]], items=2)
    split = remove_items(hold_out_last(interactions), np.asarray([item]))
    assert split.users == (("u1",), ("u0",))[item]
    assert lists(split.targets) == [[item]]
    assert set(split.training.users) == set(split.users)


def test_baskets_of_a_selection_are_renumbered_from_zero() -> None:
    sequence = make_sequence([(0.0, {0: np.nan}), (1.0, {1: np.nan, 2: np.nan}), (2.0, {3: np.nan})])
    assert sequence.select(sequence.items > 0).baskets.tolist() == [0, 0, 1]


@pytest.mark.parametrize("packed", [True, False], ids=["wheel", "folder"])
def test_movielens_is_read_from_the_wheel_and_from_its_folder(tmp_path: Path, packed: bool) -> None:
    tables = {
        "item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Children's\n2\t\"Quoted\t1996\tDrama\n",
        "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "196\t2\t3\t881250950\n196\t1\t5\t881250949\n22\t1\t1\t878887116\n22\t2\t4\t878887116\n",
    }
    wheel = tmp_path / "recbole.whl" if packed else tmp_path
    for extension, text in tables.items():
        name = f"{MOVIELENS}.{extension}"
        if packed:
            with zipfile.ZipFile(wheel, "a") as archive:
                archive.writestr(name, text)
        else:
            (wheel / name).parent.mkdir(parents=True, exist_ok=True)
            (wheel / name).write_text(text)
    interactions = read_movielens(wheel)
    assert interactions.texts == ("Toy Story (1995): Animation Children's", '"Quoted (1996): Drama')
    assert interactions.users["196"].items.tolist() == [0, 1]
    assert interactions.users["196"].values.tolist() == [5, 3]
    assert interactions.users["22"].items.tolist() == [0, 1], "ratings of the same second stay in order"
    assert lists(hold_out_last(interactions).targets) == [[1], [1]]
