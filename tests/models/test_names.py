from __future__ import annotations

import random

from models.names import MAX_LISTED_NAMES, list_nearest


def test_few_names_are_listed_with_the_nearest_first() -> None:
    names = ["banking77", "clinc150", "smp_zh", "dstc11"]
    assert list_nearest(names, "Clinc") == "clinc150, banking77, dstc11, smp_zh"
    assert list_nearest(names, "zzz") == "banking77, clinc150, dstc11, smp_zh"
    assert list_nearest(["只有一个"], "") == "只有一个"
    assert list_nearest([], "mine") == ""


def test_many_names_are_cut_and_counted() -> None:
    names = [f"team-{number}" for number in range(MAX_LISTED_NAMES)]
    assert "more" not in list_nearest(names, "team-3")
    assert list_nearest(reversed([*names, "another"]), "team-3").startswith("team-3, ")
    assert list_nearest([*names, "another"], "team-3").endswith(" and 1 more")


def test_among_very_many_names_those_next_to_the_wanted_one_are_compared() -> None:
    names = [f"shop-{number:05}" for number in range(20_000)]
    random.Random(0).shuffle(names)
    for number in (0, 9_999, 19_999):
        listed = list_nearest(names, f"Shop {number:05}x")
        assert listed.startswith(f"shop-{number:05}, ")
        assert listed.endswith(f" and {20_000 - MAX_LISTED_NAMES} more")
