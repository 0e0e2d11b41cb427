"""The report of a comparison, in Markdown and in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from models.evaluation.ranking_metrics import RankingMetrics
from tests.bench.recommend_quality.study import Row

FIELDS = ("hit_rate", "recall", "ndcg", "mrr", "coverage")


def lines(title: str, rows: Sequence[Row]) -> Iterator[str]:
    first = rows[0].views
    yield f"### {title}"
    yield ""
    heading = ["", "HR@10", "recall@10", "NDCG@10", "MRR", "coverage"]
    if first.again is not None:
        heading += ["again: HR@10", "again: NDCG@10"]
    if first.new is not None:
        heading += ["new: HR@10", "new: recall@10", "new: NDCG@10", "new: MRR"]
    yield f"| {' | '.join(heading)} |"
    yield f"|---|{'--:|' * (len(heading) - 1)}"
    for row in sorted(rows, key=lambda row: -row.views.overall.ndcg):
        yield f"| {row.method} | {' | '.join(figures(row))} |"
    yield ""
    yield (
        describe_users("All", first.overall)
        + describe_users("; again", first.again)
        + describe_users("; new", first.new)
        + "."
    )
    yield ""
    for row in rows:
        new = "" if row.setting == row.new_setting else f"; for new {format_setting(row.new_setting)}"
        yield f"- {row.method}: {format_setting(row.setting)}{new} ({row.tried} tried)"
    yield ""


def figures(row: Row) -> Iterator[str]:
    for view, fields in (
        (row.views.overall, FIELDS),
        (row.views.again, ("hit_rate", "ndcg")),
        (row.views.new, FIELDS[:-1]),
    ):
        if view is not None:
            yield from (f"{getattr(view, field):.4f}" for field in fields)


def describe_users(label: str, view: RankingMetrics | None) -> str:
    return "" if view is None else f"{label}: {view.users:,} users"


def format_setting(setting: object) -> str:
    return json.dumps(setting).replace('"', "").strip("{}") or "nothing to choose"


def write(folder: Path, tables: dict[str, Sequence[Row]]) -> str:
    """Write both files into the folder. Return the Markdown."""
    text = "\n".join(line for title, rows in tables.items() for line in lines(title, rows))
    (folder / "report.md").write_text(text)
    content = {title: [asdict(row) for row in rows] for title, rows in tables.items()}
    (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n")
    return text
