"""A study chooses settings on the inner split, continues after an interruption and reports each method."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from models.data.interactions import Split, hold_out_last, read_online_retail
from tests.bench.recommend_quality import report
from tests.bench.recommend_quality.__main__ import main, removed_study
from tests.bench.recommend_quality.methods import Method, Setting, as_rank, grid
from tests.bench.recommend_quality.simple import Rankings
from tests.bench.recommend_quality.study import Study, study, views
from tests.support.tiny_baskets import ITEMS, interactions


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
