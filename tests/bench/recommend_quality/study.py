"""One data set's comparison: each method tuned on the inner split, then measured once on what was held out.

What is done is kept in a folder, so that a comparison that was cut off goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.data.interactions import Split, hold_out_last
from models.evaluation.ranking_metrics import RankingMetrics, drop_items, measure_rankings
from tests.bench.recommend_quality.methods import Method, Setting
from tests.bench.recommend_quality.simple import Rankings


@dataclass(frozen=True, slots=True)
class Views:
    """`overall`: all targets among all items; `again`: those the user had before, among all items; `new`: those the
    user never had, among the items the user never had. None where no user has such a target."""

    overall: RankingMetrics
    again: RankingMetrics | None
    new: RankingMetrics | None


@dataclass(frozen=True, slots=True)
class Row:
    """One method. `again` goes with `overall`; for `new` the setting that is best there may be another one."""

    method: str
    views: Views
    setting: Setting
    new_setting: Setting
    tried: int


def views(split: Split, rankings: Rankings) -> Views:
    items = len(split.training.ids)
    again, new = split.repeat_targets(), split.novel_targets()
    return Views(
        measure_rankings(rankings, split.targets, items),
        measure_rankings(rankings[among(split, again)], again.targets, items) if again.users else None,
        measure_rankings(drop_items(rankings[among(split, new)], new.owned), new.targets, items) if new.users else None,
    )


def among(split: Split, fewer: Split) -> NDArray[np.bool_]:
    """Which of the split's users the other one has, (users,)."""
    return np.isin(split.users, fewer.users)


@dataclass(frozen=True, slots=True)
class Study:
    """`chosen_by`: the field of `Measures` that decides between settings, on `inner`."""

    split: Split
    inner: Split
    folder: Path
    chosen_by: str = "ndcg"

    def row(self, method: Method) -> Row:
        path = self.folder / f"{slug(method.name)}.json"
        if path.exists():
            return read_row(path)
        tried = list(self._tried(method))
        best = max(tried, key=lambda one: float(getattr(one[1].overall, self.chosen_by)))[0]
        best_new = max(tried, key=lambda one: float(getattr(one[1].new, self.chosen_by, 0)))[0]
        found = self._final(method, best)
        new = found if best_new == best else self._final(method, best_new)
        row = Row(method.name, Views(found.overall, found.again, new.new), best, best_new, len(tried))
        path.write_text(json.dumps(asdict(row), indent=1) + "\n")
        return row

    def _final(self, method: Method, setting: Setting) -> Views:
        ((_, rankings),) = method.rank(self.split, setting)
        return views(self.split, rankings)

    def _tried(self, method: Method) -> Iterator[tuple[Setting, Views]]:
        """Every setting on the inner split; a method with a single one is not tried at all."""
        if len(method.settings) == 1 and not isinstance(method.settings[0].get("epochs"), Sequence):
            nothing = RankingMetrics(0, 0, 0, 0, 0, 0, 0)
            yield method.settings[0], Views(nothing, None, None)
            return
        path = self.folder / f"{slug(method.name)}.tried.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        done = {one["asked"]: one["found"] for one in map(json.loads, lines)}
        for setting in method.settings:
            asked = json.dumps(setting)
            if asked not in done:
                found = [
                    (told, asdict(views(self.inner, rankings))) for told, rankings in method.rank(self.inner, setting)
                ]
                done[asked] = found
                with path.open("a") as file:
                    file.write(json.dumps({"asked": asked, "found": found}) + "\n")
            for told, figures in done[asked]:
                yield told, read_views(figures)


def study(split: Split, folder: Path) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    return Study(split, hold_out_last(split.training), folder)


def read_row(path: Path) -> Row:
    kept = json.loads(path.read_text())
    return Row(**{**kept, "views": read_views(kept["views"])})


def read_views(kept: dict[str, dict[str, float] | None]) -> Views:
    parts = {name: None if one is None else RankingMetrics(**one) for name, one in kept.items()}  # type: ignore[arg-type]
    return Views(**parts)  # type: ignore[arg-type]


def slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.casefold()).split())
