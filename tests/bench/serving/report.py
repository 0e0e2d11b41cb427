"""Measurements to a Markdown report and a picture: medians of the rounds, the figures, versions and settings.

Knows what to say of the contenders, not how anything was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure as Picture

from tests.bench.harness.versions import machine
from tests.bench.serving.contenders import ABSENT, CONTENDERS, Contender, Kind
from tests.bench.serving.session import Measurement
from tests.bench.serving.targets import FIGURES, Round
from tests.bench.serving.workloads import WORKLOADS, Workload

_COLOURS = {Kind.LIMIT: "#9a9a9a", Kind.HEED: "#c8401f", Kind.BATCHING: "#33658a", Kind.OTHER: "#86a8c4"}
_PICTURED = [workload for workload in WORKLOADS if workload.name in ("short-64", "mixed-64")]


@dataclass(frozen=True, slots=True)
class About:
    """What a report says beside the measurements."""

    model: str
    seconds: float
    texts: Sequence[str]  # a description of each set
    versions: Mapping[str, str]  # by contender, in words
    failures: Sequence[str]


class Medians:
    """Over the rounds, by contender and workload."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self._all = measurements

    def found(self, contender: Contender, workload: Workload) -> list[Measurement]:
        return [one for one in self._all if (one.contender, one.workload) == (contender.name, workload.name)]

    def value(self, contender: Contender, workload: Workload, of: Callable[[Measurement], float]) -> float:
        values = [v for one in self.found(contender, workload) if not math.isnan(v := of(one))]
        return median(values) if values else math.nan

    def start_s(self, contender: Contender) -> float:
        starts = {one.round: one.start_s for one in self._all if one.contender == contender.name}
        return median(starts.values()) if starts else math.nan


def write(about: About, measurements: Sequence[Measurement], folder: Path) -> None:
    (folder / "report.md").write_text(markdown(about, measurements), encoding="utf-8")
    picture(Medians(measurements)).savefig(folder / "speed.png", dpi=120, bbox_inches="tight")


def line(one: Measurement) -> str:
    """For whoever waits."""
    rest = f"p50 {one.p50_ms:.1f}, p99 {one.p99_ms:.1f} ms, {one.cpu_ms:.1f} ms of CPU a request"
    counts = f"{one.refused} refused, {one.broken} broken, {one.late} late"
    return f"{one.round} {one.contender} {one.workload}: {one.texts_per_s:.1f} texts/s, {rest}, {counts} {one.note}"


def markdown(about: About, measurements: Sequence[Measurement]) -> str:
    rounds = len({one.round for one in measurements})
    return "\n".join(
        [
            f"# Serving, {date.today().isoformat()}",
            "",
            f"`make bench-serve`: {about.model}; {machine()}. Medians of {rounds} "
            f"interleaved rounds, {about.seconds:g} s a workload. The load generator runs on the same cores, the same "
            "for all; what it took of them is in the last column. wrk asks in a closed loop; the latency of arrivals "
            "counts from when each was due.",
            "",
            *(f"- {text}" for text in about.texts),
            "",
            *_figures(measurements),
            *(line for workload in WORKLOADS for line in _table(workload, Medians(measurements))),
            *_settings(about.versions, Medians(measurements)),
            *_missing(about.failures),
        ]
    )


def _figures(measurements: Sequence[Measurement]) -> Iterator[str]:
    numbers = sorted({one.round for one in measurements})
    rounds = [Round([one for one in measurements if one.round == number]) for number in numbers]
    yield "| figure | must | aim | measured | reached |"
    yield "|---|--:|--:|--:|---|"
    for figure in FIGURES:
        value = figure.measured(rounds)
        sign = "≤ " if figure.at_most else ""
        bounds = f"{sign}{figure.must:.2f} | {sign}{figure.aim:.2f}"
        yield f"| {figure.title} | {bounds} | {_number(value, 2)} | {figure.verdict(value)} |"
    yield ""


def _table(workload: Workload, medians: Medians) -> Iterator[str]:
    rows = [contender for contender in CONTENDERS if medians.found(contender, workload)]
    if not rows:
        return
    yield f"**{workload.title}** (`{workload.name}`)"
    yield ""
    yield (
        "| | texts/s | range | p50, ms | p99, ms | CPU, ms a request | memory, GB | refused | broken | late | "
        "padded ÷ real | generator, cores |"
    )
    yield "|---|" + "--:|" * 11
    for contender in sorted(rows, key=lambda one: -medians.value(one, workload, lambda found: found.texts_per_s)):
        yield f"| {contender.title}{_note(medians, contender, workload)} | {_row(medians, contender, workload)} |"
    yield ""


def _row(medians: Medians, contender: Contender, workload: Workload) -> str:
    def cell(of: Callable[[Measurement], float], digits: int) -> str:
        return _number(medians.value(contender, workload, of), digits)

    found = medians.found(contender, workload)
    rates = [one.texts_per_s for one in found]
    cells = [
        cell(lambda one: one.texts_per_s, 1),
        f"{min(rates):.0f}–{max(rates):.0f}",
        cell(lambda one: one.p50_ms, 1),
        cell(lambda one: one.p99_ms, 1),
        cell(lambda one: one.cpu_ms, 1),
        cell(lambda one: one.pss_bytes / 1e9, 2),
        *(str(sum(counts)) for counts in zip(*((one.refused, one.broken, one.late) for one in found), strict=True)),
        cell(lambda one: one.padding, 3),
        cell(lambda one: one.generator_cores, 3),
    ]
    return " | ".join(cells)


def _note(medians: Medians, contender: Contender, workload: Workload) -> str:
    note = medians.found(contender, workload)[-1].note
    return f" ({note})" if note else ""


def _settings(versions: Mapping[str, str], medians: Medians) -> Iterator[str]:
    yield "| contender | versions | settings | ready after, s |"
    yield "|---|---|---|--:|"
    for one in CONTENDERS:
        if one.name in versions:
            ready_s = _number(medians.start_s(one), 1)
            yield f"| {one.title} | {versions[one.name]} | {one.settings} | {ready_s} |"
    yield ""


def _missing(failures: Sequence[str]) -> Iterator[str]:
    yield from (f"- Did not run: {failure}" for failure in failures)
    yield from (f"- Not among them: {name}, {reason}" for name, reason in ABSENT)
    yield ""


def picture(medians: Medians) -> Picture:
    """Texts per second of every contender, short and mixed side by side."""
    drawn = Picture(figsize=(11, 4.2), layout="constrained")
    for place, workload in enumerate(_PICTURED, 1):
        axes = drawn.add_subplot(1, len(_PICTURED), place)
        rates = [(medians.value(one, workload, lambda found: found.texts_per_s), one) for one in CONTENDERS]
        shown = sorted((rate, one.title, _COLOURS[one.kind]) for rate, one in rates if not math.isnan(rate))
        axes.set_title(workload.title, loc="left", fontsize=11)
        axes.set_xlabel("texts per second")
        axes.spines[["top", "right"]].set_visible(False)
        if shown:
            values, titles, colours = zip(*shown, strict=True)
            axes.bar_label(axes.barh(titles, values, color=colours), fmt="%.0f", padding=3)
            axes.margins(x=0.12)
    return drawn


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"
