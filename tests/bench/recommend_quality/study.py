"""The comparison of methods on a data set: each is tuned on the inner split, then measured once on the held-out data.

Results are stored in a folder, so that an interrupted comparison continues.
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
    """The metrics of a method over three sets of targets. None if no user has such a target.

    - `overall` has all targets among all items.
    - `again` has the targets that the user had before, among all items.
    - `new` has the targets that the user never had, among the items that the user never had.
    """

    overall: RankingMetrics
    again: RankingMetrics | None
    new: RankingMetrics | None


@dataclass(frozen=True, slots=True)
class Row:
    """The row of a method. The metrics of `new` have the best setting for them, the others that of `overall`."""

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
        measure_rankings(rankings[user_mask(split, again)], again.targets, items) if again.users else None,
        measure_rankings(drop_items(rankings[user_mask(split, new)], new.owned), new.targets, items)
        if new.users
        else None,
    )


def user_mask(split: Split, fewer: Split) -> NDArray[np.bool_]:
    """Return the mask (users,) of the users of `split` that `fewer` has."""
    return np.isin(split.users, fewer.users)


@dataclass(frozen=True, slots=True)
class Study:
    """A comparison. `chosen_by` is the field of `RankingMetrics` that selects settings on `inner`."""

    split: Split
    inner: Split
    folder: Path
    chosen_by: str = "ndcg"

    def row(self, method: Method) -> Row:
        path = self.folder / f"{slug(method.name)}.json"
        if path.exists():
            return read_row(path)
        trials = list(self._try_settings(method))
        best = max(trials, key=lambda trial: float(getattr(trial[1].overall, self.chosen_by)))[0]
        best_new = max(trials, key=lambda trial: float(getattr(trial[1].new, self.chosen_by, 0)))[0]
        overall = self._measure(method, best)
        new = overall if best_new == best else self._measure(method, best_new)
        row = Row(method.name, Views(overall.overall, overall.again, new.new), best, best_new, len(trials))
        path.write_text(json.dumps(asdict(row), indent=1) + "\n")
        return row

    def _measure(self, method: Method, setting: Setting) -> Views:
        ((_, rankings),) = method.rank(self.split, setting)
        return views(self.split, rankings)

    def _try_settings(self, method: Method) -> Iterator[tuple[Setting, Views]]:
        """Yield every setting with its metrics on the inner split. A method with one setting is not measured."""
        if len(method.settings) == 1 and not isinstance(method.settings[0].get("epochs"), Sequence):
            unmeasured = RankingMetrics(0, 0, 0, 0, 0, 0, 0)
            yield method.settings[0], Views(unmeasured, None, None)
            return
        path = self.folder / f"{slug(method.name)}.tried.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        done = {trial["asked"]: trial["found"] for trial in map(json.loads, lines)}
        for setting in method.settings:
            key = json.dumps(setting)
            if key not in done:
                results = [
                    (used_setting, asdict(views(self.inner, rankings)))
                    for used_setting, rankings in method.rank(self.inner, setting)
                ]
                done[key] = results
                with path.open("a") as file:
                    file.write(json.dumps({"asked": key, "found": results}) + "\n")
            for used_setting, figures in done[key]:
                yield used_setting, read_views(figures)


def study(split: Split, folder: Path) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    return Study(split, hold_out_last(split.training), folder)


def read_row(path: Path) -> Row:
    content = json.loads(path.read_text())
    return Row(**{**content, "views": read_views(content["views"])})


def read_views(content: dict[str, dict[str, float] | None]) -> Views:
    views_by_name = {name: None if values is None else RankingMetrics(**values) for name, values in content.items()}  # type: ignore[arg-type]
    return Views(**views_by_name)  # type: ignore[arg-type]


def slug(name: str) -> str:
    return "-".join("".join(letter if letter.isalnum() else " " for letter in name.casefold()).split())
