from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.data.interactions import (
    Interactions,
    Split,
    hold_out_last,
    make_sequence,
    read_online_retail,
    remove_items,
)
from models.prediction.normalize import l2_normalize
from models.ranking.cold_start import ColdStartWeights
from models.training.history_network import HistoryConfig
from models.training.item_neighbours import NeighbourConfig
from tests.bench.recommend_quality import report
from tests.bench.recommend_quality.__main__ import ON_MOVIELENS, main, removed_study, schedule_of
from tests.bench.recommend_quality.heed import WITHOUT, Trained, ablations, trained
from tests.bench.recommend_quality.linear import linear
from tests.bench.recommend_quality.methods import (
    PYTHON,
    Method,
    Setting,
    directly,
    following,
    grid,
    matrices,
    sasrec,
    save,
    sequences,
    simple,
    together,
)
from tests.bench.recommend_quality.newcomers import lines, newcomers_first, whole
from tests.bench.recommend_quality.raw import raw_encoder
from tests.bench.recommend_quality.simple import (
    Rankings,
    by_chance,
    decayed,
    most_popular,
    own_most_frequent,
    popularity,
    ranked,
    tifu_knn,
)
from tests.bench.recommend_quality.study import Study, study, views

ITEMS = 6


def interactions(*users: list[list[int]]) -> Interactions:
    """Each user's baskets, a day apart."""
    names = tuple(str(item) for item in range(ITEMS))
    trails = {
        f"u{number}": make_sequence(
            [(86400.0 * day, dict.fromkeys(basket, np.nan)) for day, basket in enumerate(baskets)]
        )
        for number, baskets in enumerate(users)
    }
    return Interactions("purchase", names, names, trails)


@pytest.fixture
def split() -> Split:
    return hold_out_last(interactions([[0, 1], [1, 2], [1, 4]], [[3], [3, 4], [3, 0]], [[5, 4]]))


def test_popularity_counts_the_baskets_of_the_last_days(split: Split) -> None:
    assert popularity(split.training).tolist() == [1, 2, 1, 2, 2, 1]
    assert popularity(split.training, days=0.5).tolist() == [0, 1, 1, 1, 1, 0]
    assert most_popular(split, None)[1].tolist() == [1, 3, 4, 0, 2, 5]


def test_of_equal_scores_the_more_popular_comes_first() -> None:
    scores = np.asarray([[0, 1, 0, 0]], np.float32)
    assert ranked(scores, np.asarray([1, 0, 3, 2], np.float32)).tolist() == [[1, 2, 3, 0]]


@pytest.mark.parametrize(("tie", "first"), [("recent", [1, 2, 0]), ("popular", [1, 0, 2])])
def test_a_users_own_items_come_by_how_often_he_took_them(split: Split, tie: str, first: list[int]) -> None:
    found = own_most_frequent(split, tie)
    assert found[0].tolist() == [*first, 3, 4, 5]
    assert found[1].tolist()[:2] == [3, 4]


def test_a_decayed_history_weighs_groups_of_baskets_by_age() -> None:
    trail = interactions([[0], [1], [2, 3]]).users["u0"]
    (row,) = decayed([trail], ITEMS, groups=2, in_group=0.5, between=0.1)
    assert row.tolist() == pytest.approx([0.1 / 2, 0.5 / 4, 1 / 4, 1 / 4, 0, 0])


def test_neighbours_give_what_the_user_never_had() -> None:
    alike = [[0], [1]]
    split = hold_out_last(interactions([*alike, [3]], [*alike, [5], [5]], [[3], [4], [4]], [[2, 3], [2, 3]]))
    found = tifu_knn(split, neighbours=1, own=0.5, groups=2, in_group=1.0, between=1.0, recent_days=None)
    assert found[0].tolist()[:3] == [0, 1, 5]


@pytest.mark.parametrize("method", [*simple(), Method("random", directly(by_chance), grid(seed=(3,)))])
def test_every_simple_method_ranks_every_item_once(split: Split, method: Method) -> None:
    setting = {**method.settings[0], **({"neighbours": 2} if "neighbours" in method.settings[0] else {})}
    ((told, rankings),) = method.rank(split, setting)
    assert told == setting
    assert np.sort(rankings, axis=1).tolist() == [list(range(ITEMS))] * 2


def test_ease_gives_what_others_with_the_same_items_have() -> None:
    """Items 0, 1 and 2 go together, 3 and 4 too; whoever has 0 and 1 is told 2 before what goes with neither."""
    asked = hold_out_last(interactions(*[[[0, 1, 2]]] * 6, *[[[3, 4]]] * 9, [[0, 1], [2]]))
    (told,) = linear(asked, ridge=0.5).tolist()
    assert told[0] == 2
    assert sorted(told) == list(range(ITEMS))


def test_transitions_have_a_direction() -> None:
    """0 stands before 1 and 1 before 2: after 1 comes 2, though 0 stands beside it more often."""
    asked = hold_out_last(interactions(*[[[0], [1], [5]]] * 8, *[[[1], [2], [5]]] * 6, [[1], [5]]))
    told = linear(asked, ridge=0.1, after=1.0, past=1.0, ahead=1.0, asked=1.0)[-1].tolist()
    assert told[0] == 2
    assert sorted(told) == list(range(ITEMS))


def test_views_keep_what_is_new_apart(split: Split) -> None:
    found = views(split, np.tile(np.arange(ITEMS), (2, 1)))
    assert found.again is not None
    assert found.new is not None
    assert (found.overall.users, found.again.users, found.new.users) == (2, 2, 2)
    assert found.new.mrr == pytest.approx((1 / 2 + 1) / 2), "4 after 3 for the first user, 0 first for the second"
    assert found.again.mrr == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_a_view_without_targets_is_empty() -> None:
    split = hold_out_last(interactions([[0], [1]]))
    assert views(split, np.asarray([[1, 0, 2, 3, 4, 5]])).again is None


class Asked:
    """Ranks the wanted item first, others in order; counts on which split and with what it was asked."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, object]] = []

    def method(self, *firsts: int) -> Method:
        return Method("first of all", self.rank, grid(first=firsts))

    def rank(self, split: Split, setting: Setting) -> Iterator[tuple[Setting, Rankings]]:
        self.seen.append((len(split.training.users["u0"]), setting["first"]))
        row = sorted(range(ITEMS), key=lambda item: item != setting["first"])
        yield setting, np.tile(row, (len(split.users), 1))


@pytest.fixture
def compared(split: Split, tmp_path: Path) -> Study:
    return study(split, tmp_path)


def test_settings_are_chosen_on_the_inner_split_and_measured_once_outside(compared: Study) -> None:
    asked = Asked()
    row = compared.row(asked.method(5, 4))
    inner, outer = 2, 4
    assert asked.seen == [(inner, 5), (inner, 4), (outer, 4)]
    assert row.setting == {"first": 4}
    assert row.tried == 2


def test_a_comparison_that_was_cut_off_goes_on_where_it_stopped(compared: Study) -> None:
    before = Asked()
    first = compared.row(before.method(4))
    assert compared.row(before.method(4)) == first
    assert len(before.seen) == 1, "one setting needs no tuning, and a row that is there is read"
    (compared.folder / "first-of-all.json").unlink()
    compared.row(before.method(4, 5))
    (compared.folder / "first-of-all.json").unlink()
    after = Asked()
    compared.row(after.method(4, 5, 3))
    assert [one for one in after.seen if one[0] == 2] == [(2, 3)]


def test_a_method_may_be_told_otherwise_for_what_is_new(tmp_path: Path) -> None:
    split = hold_out_last(interactions([[0], [0, 3], [2]]))
    rows = {"old": [0, 1, 3, 2, 4, 5], "new": [3, 1, 2, 4, 5, 0]}
    method = Method("two", directly(lambda split, row: np.asarray([rows[row]])), grid(row=("old", "new")))
    found = study(split, tmp_path).row(method)
    assert (found.setting, found.new_setting) == ({"row": "old"}, {"row": "new"})
    assert found.views.new is not None
    assert (found.views.overall.mrr, found.views.new.mrr) == pytest.approx((1 / 4, 1 / 2))


def test_the_report_has_a_line_a_method_and_says_what_was_chosen(compared: Study, tmp_path: Path) -> None:
    rows = [compared.row(Asked().method(5, 4))]
    text = report.write(tmp_path, {"Toys": rows})
    assert "| first of all | 1.0000 |" in text
    assert "- first of all: first: 4 (2 tried)" in text
    assert json.loads((tmp_path / "report.json").read_text())["Toys"][0]["views"]["overall"]["users"] == 2
    assert (tmp_path / "report.md").read_text() == text


def test_peers_are_given_all_of_training_and_who_is_asked(split: Split, tmp_path: Path) -> None:
    save(split, tmp_path / "split.npz")
    kept = np.load(tmp_path / "split.npz")
    assert kept["items"].tolist() == [0, 1, 1, 2, 3, 3, 4, 5, 4]
    assert kept["offsets"].tolist() == [0, 4, 7, 9]
    assert kept["asked"].tolist() == [0, 1]
    assert kept["item_count"] == ITEMS


def test_methods_have_names_of_their_own() -> None:
    names = [method.name for method in [*simple(), together(), *following(), *matrices()]]
    assert len(set(names)) == len(names)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A data folder with six items and three users."""
    folder = tmp_path / "data" / "online_retail"
    folder.mkdir(parents=True)
    with gzip.open(folder / "items.jsonl.gz", "wt", encoding="utf-8") as file:
        for item in range(ITEMS):
            file.write(json.dumps({"item_id": f"i{item}", "text": f"Thing {item}", "median_price": 1.0}) + "\n")
    with gzip.open(folder / "interactions.csv.gz", "wt", encoding="utf-8") as file:
        file.write("user_id,item_id,timestamp,invoice,quantity\n")
        for user in range(3):
            for day in range(1, 4):
                for item in {user, day, (user + day) % ITEMS}:
                    file.write(f"u{user},i{item},2011-01-0{day} 10:00:00,{user}{day},1\n")
    return tmp_path / "data"


def test_the_command_writes_a_table_of_the_methods_asked_for(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ["--data", str(shop), "--out", str(out), "--parts", "retail", "--methods", "popularity", "the"]
    monkeypatch.setattr("sys.argv", ["bench-recommend-quality", *command])
    main()
    (rows,) = json.loads((out / "report.json").read_text()).values()
    assert [row["method"] for row in rows] == ["popularity", "the user's most frequent"]
    assert "3 users" in (out / "report.md").read_text()


def test_items_are_removed_from_the_inner_split_too(shop: Path, tmp_path: Path) -> None:
    compared = removed_study(hold_out_last(read_online_retail(shop / "online_retail")), tmp_path, share=0.5)
    assert compared.chosen_by == "hit_rate"
    for asked in (compared.split, compared.inner):
        targets = np.concatenate(asked.targets)
        assert len(targets)
        assert not any(np.isin(targets, trail.items).any() for trail in asked.training.users.values())


def test_a_network_of_heed_is_trained_on_the_split_it_is_asked_for(split: Split) -> None:
    texts = np.eye(ITEMS, 8, dtype=np.float32)
    schedule = HistoryConfig(
        seed=0, epochs=1, batch_examples=2, events=8, rate=1e-3, weight_decay=0.0, dropout=0.0, id_dropout=0.5,
        halves=0.5, often=1.0, neighbours=NeighbourConfig(weight=1.0, ridge=1.0, kept=3), steps_of_user=2, inner=8,
        layers=1, heads=2, eyes=2, eye=4,
    )  # fmt: skip
    heed = Trained(texts, schedule)
    methods = [trained("Heed", heed), *ablations(texts, schedule)]
    assert [method.name for method in methods][1:] == [f"Heed, {what}" for what in WITHOUT]
    for method in methods:
        ((_, rankings),) = method.rank(split, {})
        assert np.sort(rankings, axis=1).tolist() == [list(range(ITEMS))] * 2


def test_all_rows_of_heed_can_be_trained_shorter_and_newcomers_are_told_where_items_are_removed() -> None:
    assert schedule_of("movielens", None).epochs == ON_MOVIELENS["epochs"]
    assert schedule_of("retail", None).epochs > 1
    for part in ("retail", "movielens", "removed"):
        schedule = schedule_of(part, 1)
        assert schedule.epochs == 1
        assert schedule.find_newcomers == (part == "removed")


def test_texts_alone_rank_what_is_near_the_history_first(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = np.asarray([[np.cos(angle), np.sin(angle)] for angle in range(ITEMS)], np.float32)
    monkeypatch.setattr("tests.bench.recommend_quality.raw.embedded", lambda base, texts: circle)
    split = hold_out_last(interactions([[0], [2], [5]]))
    for method in raw_encoder("base", split.training.texts):
        firsts = {}
        for setting in method.settings:
            ((_, rankings),) = method.rank(split, setting)
            firsts[setting["baskets"]] = int(rankings[0, 0])
        assert firsts == {None: 1, 1: 2}


def test_without_its_mean_an_encoder_tells_texts_apart_that_it_has_all_near_one_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Items are one place with a little of their own; a history of 0 and 1 is nearest to what is between them, 5."""
    own = np.asarray([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, -1], [0, -1, -1], [0.6, 0.6, 0]], np.float32)
    monkeypatch.setattr(
        "tests.bench.recommend_quality.raw.embedded", lambda base, texts: l2_normalize(own * 0.1 + [0, 0, 9])
    )
    split = hold_out_last(interactions([[0], [1], [5]]))
    plain, around = raw_encoder("base", split.training.texts)
    assert (plain.name, around.name) == ("raw encoder", "raw encoder, without its mean")
    for method in (plain, around):
        ((_, rankings),) = method.rank(split, {"prefix": "", "baskets": None})
        assert np.sort(rankings[0]).tolist() == list(range(ITEMS))
    assert rankings[0, 0] == 5


def test_so_many_newcomers_take_the_last_places_of_ten() -> None:
    rankings = np.asarray([[0, 4, 1, 2, 5, 3], [4, 5, 0, 1, 2, 3], [0, 1, 2, -1, -1, -1]])
    new = np.asarray([4, 5])
    assert newcomers_first(rankings, new, 0, 3).tolist() == [[0, 4, 1], [4, 5, 0], [0, 1, 2]]
    assert newcomers_first(rankings, new, 2, 3).tolist() == [[0, 4, 5], [4, 5, 0], [0, 1, 2]]
    assert newcomers_first(rankings, new, 3, 4).tolist() == [[0, 4, 1, 5], [4, 5, 0, 1], [0, 1, 2, -1]]


def test_what_newcomers_gain_and_cost_is_told_of_each_method() -> None:
    held_out = hold_out_last(interactions([[0, 4], [4, 1]], [[1], [2]], [[4], [5]]))
    removed = remove_items(held_out, np.asarray([4]))
    every = whole(removed, held_out)
    assert (removed.users, every.users) == (("u0",), ("u0", "u1"))
    assert [own.tolist() for own in every.targets] == [[4, 1], [2]]
    rankings = np.asarray([[0, 1, 2, 3, 5, 4], [1, 2, 0, 3, 5, 4]])
    told = list(lines(removed, every, np.asarray([4]), {"Heed": rankings}))
    row = [part.strip() for part in told[4].split("|")[1:-1]]
    assert row[:4] == ["Heed", "0", "1.0000", "1.0000"]
    assert row[-1] == "1.00"
    assert len(told) == 4 + 6 + 2


def test_a_network_is_trained_once_and_newcomers_are_told(split: Split) -> None:
    texts = np.eye(ITEMS, 8, dtype=np.float32)
    removed = remove_items(split, np.asarray([3]))
    schedule = HistoryConfig(
        seed=0, epochs=1, batch_examples=2, events=8, rate=1e-3, weight_decay=0.0, dropout=0.0, id_dropout=0.5,
        halves=0.0, often=1.0, neighbours=NeighbourConfig(weight=1.0, ridge=1.0, kept=3), steps_of_user=2, inner=8,
        layers=1, heads=2, eyes=2, eye=4, newcomers=ColdStartWeights(bias=50.0, neighbours=0.0, taken=0.0),
    )  # fmt: skip
    heed = Trained(texts, schedule, new=np.asarray([3]))
    first = heed.rank(removed)
    assert (first[:, 0] == 3).all()
    assert (Trained(texts, schedule).rank(removed)[:, 0] != 3).all()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tests.bench.recommend_quality.heed.train_history_network", None)
        assert (heed.rank(replace(removed, targets=removed.targets[::-1])) == first).all()


@pytest.mark.skipif(not PYTHON.exists(), reason="needs make .venv/bench-recommend/installed")
@pytest.mark.parametrize("method", [next(matrices()), sasrec((1,), batch_size=(2,))])
def test_what_a_library_ranks_has_every_item_once(split: Split, method: Method) -> None:
    small = {"n_factors": 4, "n_heads": 1, "session_max_len": 4}
    first = {**method.settings[0], **(small if "epochs" in method.settings[0] else {})}
    ((told, rankings),) = method.rank(split, first)
    assert told == first | ({"epochs": [1]} if "epochs" in first else {})
    assert np.sort(rankings, axis=1).tolist() == [list(range(ITEMS))] * 2


@pytest.mark.skipif(not PYTHON.exists(), reason="needs make .venv/bench-recommend/installed")
def test_rankings_after_some_epochs_are_those_of_a_training_that_ends_there(split: Split) -> None:
    (setting,) = sasrec((1, 3), batch_size=(1,), n_factors=(4,), n_heads=(1,), session_max_len=(4,), lr=(0.1,)).settings
    (_, _), (told, after) = sequences(split, setting)
    ((_, alone),) = sequences(split, told)
    assert after.tolist() == alone.tolist()
