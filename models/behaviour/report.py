"""The report of the capability tests: its rows, its tables and its files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

BEHAVIOUR = "behaviour.md"


@dataclass(frozen=True, slots=True)
class KindReport:
    """The failure rate of a capability in a language, and the mean confidence of its wrong answers (0 without any).

    `texts` is the number of texts that were asked about several entities, and `text_failures` the share of these with a
    wrong answer about any.
    """

    kind: str
    language: str
    rows: int
    failures: float
    wrong_confidence: float
    texts: int
    text_failures: float


@dataclass(frozen=True, slots=True)
class NoiseReport:
    """The share of texts whose label a noise changes. `source` is `grammars` or `data sets`."""

    noise: str
    language: str
    source: str
    rows: int
    changes: float


@dataclass(frozen=True, slots=True)
class LongTextReport:
    """The failure rate of texts of about `words` words with one strong sentence at a position, or of it `alone`."""

    language: str
    words: int
    position: str
    rows: int
    failures: float


@dataclass(frozen=True, slots=True)
class GroupReport:
    """Shifts of polarity in a category, against the mean of all groups on the same templates.

    `mean_shift` is that of the category. `largest_shift` is that of the group that deviates most.
    """

    language: str
    category: str
    groups: int
    rows: int
    mean_shift: float
    largest_shift: float
    largest_group: str


@dataclass(frozen=True, slots=True)
class BehaviourReport:
    """All capability tests of a bundle."""

    bundle: str
    version: str
    seed: int
    per_template: int
    kinds: list[KindReport]
    noise: list[NoiseReport]
    long_texts: list[LongTextReport]
    groups: list[GroupReport]


def kinds_table(rows: Sequence[KindReport]) -> str:
    """Return a Markdown table of the failure rates by kind, with the languages side by side."""
    by_kind: dict[str, dict[str, KindReport]] = {}
    for row in rows:
        by_kind.setdefault(row.kind, {})[row.language] = row
    languages = sorted({row.language for row in rows})
    header = ["kind", *(f"{name}, {language}" for language in languages for name in ("n", "fails", "sure when wrong"))]
    lines = []
    for kind, by_language in by_kind.items():
        cells = [kind]
        for language in languages:
            report = by_language.get(language)
            cells += (
                ["–"] * 3 if report is None else [f"{report.rows:,}", fails(report), f"{report.wrong_confidence:.2f}"]
            )
        lines.append(cells)
    return markdown_table(header, lines)


def fails(report: KindReport) -> str:
    """Return the failure rate, and for texts with several entities the share with any wrong answer."""
    any_wrong = f" (any side {report.text_failures:.1%})" if report.texts else ""
    return f"{report.failures:.1%}{any_wrong}"


def noise_table(rows: Sequence[NoiseReport]) -> str:
    """Return a Markdown table of the shares of labels that each noise changes."""
    columns = sorted({(row.source, row.language) for row in rows}, key=lambda key: (key[0] != "grammars", key[1]))
    by_cell = {(row.noise, row.source, row.language): row for row in rows}
    lines = []
    for name in dict.fromkeys(row.noise for row in rows):
        cells = (by_cell.get((name, *column)) for column in columns)
        lines.append([name, *("–" if row is None else f"{row.changes:.1%} of {row.rows:,}" for row in cells)])
    return markdown_table(["labels changed by", *(f"{source}, {language}" for source, language in columns)], lines)


def long_texts_table(rows: Sequence[LongTextReport]) -> str:
    """Return a Markdown table of the failure rates of long texts by the position of the strong sentence."""
    positions = list(dict.fromkeys(row.position for row in rows))
    by_cell = {(row.language, row.words, row.position): row for row in rows}
    lines = []
    for language, words in dict.fromkeys((row.language, row.words) for row in rows):
        cells = [by_cell[language, words, position] for position in positions]
        lines.append([language, str(words), str(cells[0].rows), *(f"{row.failures:.1%}" for row in cells)])
    return markdown_table(["language", "words", "n", *positions], lines)


def groups_table(rows: Sequence[GroupReport]) -> str:
    """Return a Markdown table of the shifts of polarity by category of groups."""
    return markdown_table(
        ["language", "category", "groups", "n", "mean shift", "largest shift", "of"],
        (
            [
                *(row.language, row.category, str(row.groups), f"{row.rows:,}"),
                *(f"{row.mean_shift:+.3f}", f"{row.largest_shift:+.3f}", row.largest_group),
            ]
            for row in rows
        ),
    )


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table. Its first column is aligned left and the others right."""
    rule = f"|---|{'--:|' * (len(header) - 1)}"
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(cells)} |" for cells in lines)])


def behaviour_table(report: BehaviourReport) -> str:
    """Return all tables as Markdown, each after a line that says what it has. Empty ones are left out."""
    parts = (
        ("Failures by kind, on held-out templates and words", report.kinds, kinds_table(report.kinds)),
        ("Labels that noise changes", report.noise, noise_table(report.noise)),
        (
            "Failures on one strong sentence in a long neutral text",
            report.long_texts,
            long_texts_table(report.long_texts) if report.long_texts else "",
        ),
        ("Shifts of polarity by groups of people in neutral sentences", report.groups, groups_table(report.groups)),
    )
    return "\n\n".join(f"**{title}.**\n\n{table}" for title, rows, table in parts if rows)


def write_behaviour(report: BehaviourReport, out: Path) -> None:
    """Write `behaviour.json` and `behaviour.md` to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    content = json.dumps(asdict(report), indent=1, ensure_ascii=False)
    (out / "behaviour.json").write_text(content + "\n", encoding="utf-8")
    (out / BEHAVIOUR).write_text(behaviour_table(report) + "\n", encoding="utf-8")
