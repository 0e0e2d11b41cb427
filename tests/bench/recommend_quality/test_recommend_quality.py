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
from tests.bench.recommend_quality.__main__ import ON_MOVIELENS, config_of, main, removed_study
from tests.bench.recommend_quality.cold_items import add_cold_targets, promote_cold_items, render_lines
from tests.bench.recommend_quality.heed import ABLATIONS, TrainedHeed, ablations, heed_method
from tests.bench.recommend_quality.linear import linear
from tests.bench.recommend_quality.methods import (
    PYTHON,
    Method,
    Setting,
    as_rank,
    ease,
    grid,
    matrices,
    sasrec,
    save,
    sequences,
    simple,
    slit_and_slist,
)
from tests.bench.recommend_quality.raw import raw_encoder
from tests.bench.recommend_quality.simple import (
    Rankings,
    decay_baskets,
    most_popular,
    own_most_frequent,
    popularity,
    rank_randomly,
    rank_with_ties,
    tifu_knn,
)
from tests.bench.recommend_quality.study import Study, study, views

ITEMS = 6


def interactions(*users: list[list[int]]) -> Interactions:
    """Each user's baskets, a day apart."""
    names = tuple(str(item) for item in range(ITEMS))
    sequences = {
        f"u{number}": make_sequence(
            [(86400.0 * day, dict.fromkeys(basket, np.nan)) for day, basket in enumerate(baskets)]
        )
        for number, baskets in enumerate(users)
    }
    return Interactions("purchase", names, names, sequences)


@pytest.fixture
def split() -> Split:
    return hold_out_last(interactions([[0, 1], [1, 2], [1, 4]], [[3], [3, 4], [3, 0]], [[5, 4]]))


def test_popularity_counts_the_baskets_of_the_last_days(split: Split) -> None:
    assert popularity(split.training).tolist() == [1, 2, 1, 2, 2, 1]
    assert popularity(split.training, days=0.5).tolist() == [0, 1, 1, 1, 1, 0]
    assert most_popular(split, None)[1].tolist() == [1, 3, 4, 0, 2, 5]


def test_of_equal_scores_the_more_popular_comes_first() -> None:
    scores = np.asarray([[0, 1, 0, 0]], np.float32)
    assert rank_with_ties(scores, np.asarray([1, 0, 3, 2], np.float32)).tolist() == [[1, 2, 3, 0]]


@pytest.mark.parametrize(("tie", "first"), [("recent", [1, 2, 0]), ("popular", [1, 0, 2])])
def test_the_users_items_are_ranked_by_frequency(split: Split, tie: str, first: list[int]) -> None:
    rankings = own_most_frequent(split, tie)
    assert rankings[0].tolist() == [*first, 3, 4, 5]
    assert rankings[1].tolist()[:2] == [3, 4]


def test_decay_weights_groups_of_baskets_by_age() -> None:
    sequence = interactions([[0], [1], [2, 3]]).users["u0"]
    (row,) = decay_baskets([sequence], ITEMS, groups=2, in_group=0.5, between=0.1)
    assert row.tolist() == pytest.approx([0.1 / 2, 0.5 / 4, 1 / 4, 1 / 4, 0, 0])


def test_neighbours_add_items_that_are_new_to_the_user() -> None:
    baskets = [[0], [1]]
    split = hold_out_last(interactions([*baskets, [3]], [*baskets, [5], [5]], [[3], [4], [4]], [[2, 3], [2, 3]]))
    rankings = tifu_knn(split, neighbours=1, own=0.5, groups=2, in_group=1.0, between=1.0, recent_days=None)
    assert rankings[0].tolist()[:3] == [0, 1, 5]


@pytest.mark.parametrize("method", [*simple(), Method("random", as_rank(rank_randomly), grid(seed=(3,)))])
def test_every_simple_method_ranks_every_item_once(split: Split, method: Method) -> None:
    setting = {**method.settings[0], **({"neighbours": 2} if "neighbours" in method.settings[0] else {})}
    ((used_setting, rankings),) = method.rank(split, setting)
    assert used_setting == setting
    assert np.sort(rankings, axis=1).tolist() == [list(range(ITEMS))] * 2


def test_ease_ranks_co_occurring_items_first() -> None:
    """Items 0, 1 and 2 occur together, as do 3 and 4. A user with 0 and 1 gets 2 first."""
    split = hold_out_last(interactions(*[[[0, 1, 2]]] * 6, *[[[3, 4]]] * 9, [[0, 1], [2]]))
    (ranking,) = linear(split, ridge=0.5).tolist()
    assert ranking[0] == 2
    assert sorted(ranking) == list(range(ITEMS))


def test_transitions_have_a_direction() -> None:
    """0 precedes 1, and 1 precedes 2. After 1, 2 ranks first, although 0 occurs with 1 more often."""
    split = hold_out_last(interactions(*[[[0], [1], [5]]] * 8, *[[[1], [2], [5]]] * 6, [[1], [5]]))
    ranking = linear(split, ridge=0.1, after=1.0, past=1.0, ahead=1.0, asked=1.0)[-1].tolist()
    assert ranking[0] == 2
    assert sorted(ranking) == list(range(ITEMS))


def test_views_separate_new_targets(split: Split) -> None:
    metrics = views(split, np.tile(np.arange(ITEMS), (2, 1)))
    assert metrics.again is not None
    assert metrics.new is not None
    assert (metrics.overall.users, metrics.again.users, metrics.new.users) == (2, 2, 2)
    assert metrics.new.mrr == pytest.approx((1 / 2 + 1) / 2), "4 after 3 for the first user, 0 first for the second"
    assert metrics.again.mrr == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_a_view_without_targets_is_empty() -> None:
    split = hold_out_last(interactions([[0], [1]]))
    assert views(split, np.asarray([[1, 0, 2, 3, 4, 5]])).again is None


class RecordingMethod:
    """A method that ranks a set item first and records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, object]] = []

    def method(self, *firsts: int) -> Method:
        return Method("first of all", self.rank, grid(first=firsts))

    def rank(self, split: Split, setting: Setting) -> Iterator[tuple[Setting, Rankings]]:
        self.calls.append((len(split.training.users["u0"]), setting["first"]))
        row = sorted(range(ITEMS), key=lambda item: item != setting["first"])
        yield setting, np.tile(row, (len(split.users), 1))


@pytest.fixture
def compared(split: Split, tmp_path: Path) -> Study:
    return study(split, tmp_path)


def test_settings_are_chosen_on_the_inner_split(compared: Study) -> None:
    recorder = RecordingMethod()
    row = compared.row(recorder.method(5, 4))
    inner, outer = 2, 4
    assert recorder.calls == [(inner, 5), (inner, 4), (outer, 4)]
    assert row.setting == {"first": 4}
    assert row.tried == 2


def test_an_interrupted_comparison_continues(compared: Study) -> None:
    before = RecordingMethod()
    first = compared.row(before.method(4))
    assert compared.row(before.method(4)) == first
    assert len(before.calls) == 1, "a single setting needs no tuning, and a stored row is read"
    (compared.folder / "first-of-all.json").unlink()
    compared.row(before.method(4, 5))
    (compared.folder / "first-of-all.json").unlink()
    after = RecordingMethod()
    compared.row(after.method(4, 5, 3))
    assert [call for call in after.calls if call[0] == 2] == [(2, 3)]


def test_a_method_may_have_another_setting_for_new_targets(tmp_path: Path) -> None:
    split = hold_out_last(interactions([[0], [0, 3], [2]]))
    rows = {"old": [0, 1, 3, 2, 4, 5], "new": [3, 1, 2, 4, 5, 0]}
    method = Method("two", as_rank(lambda split, row: np.asarray([rows[row]])), grid(row=("old", "new")))
    row = study(split, tmp_path).row(method)
    assert (row.setting, row.new_setting) == ({"row": "old"}, {"row": "new"})
    assert row.views.new is not None
    assert (row.views.overall.mrr, row.views.new.mrr) == pytest.approx((1 / 4, 1 / 2))


def test_the_report_has_a_row_and_the_chosen_setting_per_method(compared: Study, tmp_path: Path) -> None:
    rows = [compared.row(RecordingMethod().method(5, 4))]
    text = report.write(tmp_path, {"Toys": rows})
    assert "| first of all | 1.0000 |" in text
    assert "- first of all: first: 4 (2 tried)" in text
    assert json.loads((tmp_path / "report.json").read_text())["Toys"][0]["views"]["overall"]["users"] == 2
    assert (tmp_path / "report.md").read_text() == text


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


def test_the_command_writes_a_table_of_the_chosen_methods(
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
    for part in (compared.split, compared.inner):
        targets = np.concatenate(part.targets)
        assert len(targets)
        assert not any(np.isin(targets, sequence.items).any() for sequence in part.training.users.values())


def test_heed_is_trained_on_the_split_that_it_ranks(split: Split) -> None:
    texts = np.eye(ITEMS, 8, dtype=np.float32)
    config = HistoryConfig(
        seed=0, epochs=1, batch_examples=2, events=8, rate=1e-3, weight_decay=0.0, dropout=0.0, id_dropout=0.5,
        halves=0.5, often=1.0, neighbours=NeighbourConfig(weight=1.0, ridge=1.0, kept=3), steps_of_user=2, inner=8,
        layers=1, heads=2, eyes=2, eye=4,
    )  # fmt: skip
    heed = TrainedHeed(texts, config)
    methods = [heed_method("Heed", heed), *ablations(texts, config)]
    assert [method.name for method in methods][1:] == [f"Heed, {name}" for name in ABLATIONS]
    for method in methods:
        ((_, rankings),) = method.rank(split, {})
        assert np.sort(rankings, axis=1).tolist() == [list(range(ITEMS))] * 2


def test_epochs_can_be_set_and_cold_items_are_fitted_only_with_removed_items() -> None:
    assert config_of("movielens", None).epochs == ON_MOVIELENS["epochs"]
    assert config_of("retail", None).epochs > 1
    for part in ("retail", "movielens", "removed"):
        config = config_of(part, 1)
        assert config.epochs == 1
        assert config.find_newcomers == (part == "removed")


def test_texts_alone_rank_items_near_the_history_first(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = np.asarray([[np.cos(angle), np.sin(angle)] for angle in range(ITEMS)], np.float32)
    monkeypatch.setattr("tests.bench.recommend_quality.raw.embed", lambda base, texts: circle)
    split = hold_out_last(interactions([[0], [2], [5]]))
    for method in raw_encoder("base", split.training.texts):
        firsts = {}
        for setting in method.settings:
            ((_, rankings),) = method.rank(split, setting)
            firsts[setting["baskets"]] = int(rankings[0, 0])
        assert firsts == {None: 1, 1: 2}


def test_subtracting_the_mean_separates_texts_with_similar_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All vectors are similar, with small differences. The history of 0 and 1 is nearest to 5, between them."""
    offsets = np.asarray([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, -1], [0, -1, -1], [0.6, 0.6, 0]], np.float32)
    monkeypatch.setattr(
        "tests.bench.recommend_quality.raw.embed", lambda base, texts: l2_normalize(offsets * 0.1 + [0, 0, 9])
    )
    split = hold_out_last(interactions([[0], [1], [5]]))
    plain, centred = raw_encoder("base", split.training.texts)
    assert (plain.name, centred.name) == ("raw encoder", "raw encoder, without its mean")
    for method in (plain, centred):
        ((_, rankings),) = method.rank(split, {"prefix": "", "baskets": None})
        assert np.sort(rankings[0]).tolist() == list(range(ITEMS))
    assert rankings[0, 0] == 5


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


def test_a_network_is_trained_once_and_scores_cold_items(split: Split) -> None:
    texts = np.eye(ITEMS, 8, dtype=np.float32)
    removed = remove_items(split, np.asarray([3]))
    config = HistoryConfig(
        seed=0, epochs=1, batch_examples=2, events=8, rate=1e-3, weight_decay=0.0, dropout=0.0, id_dropout=0.5,
        halves=0.0, often=1.0, neighbours=NeighbourConfig(weight=1.0, ridge=1.0, kept=3), steps_of_user=2, inner=8,
        layers=1, heads=2, eyes=2, eye=4, newcomers=ColdStartWeights(bias=50.0, neighbours=0.0, taken=0.0),
    )  # fmt: skip
    heed = TrainedHeed(texts, config, cold=np.asarray([3]))
    first = heed.rank(removed)
    assert (first[:, 0] == 3).all()
    assert (TrainedHeed(texts, config).rank(removed)[:, 0] != 3).all()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("tests.bench.recommend_quality.heed.train_history_network", None)
        assert (heed.rank(replace(removed, targets=removed.targets[::-1])) == first).all()


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
