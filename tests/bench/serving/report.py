"""The report and its picture: medians of the rounds, the targets, versions and settings.

Independent of how the measurements were taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from tests.bench.harness.versions import machine
from tests.bench.serving.contenders import ABSENT, CONTENDERS, Contender, Kind
from tests.bench.serving.session import Measurement
from tests.bench.serving.targets import TARGETS, Round
from tests.bench.serving.workloads import WORKLOADS, Workload

_COLOURS = {Kind.LIMIT: "#9a9a9a", Kind.HEED: "#c8401f", Kind.BATCHING: "#33658a", Kind.OTHER: "#86a8c4"}
_PICTURED = [workload for workload in WORKLOADS if workload.name in ("short-64", "mixed-64")]


@dataclass(frozen=True, slots=True)
class About:
    """The context of the measurements in a report."""

    model: str
    seconds: float
    texts: Sequence[str]  # a description of each set
    versions: Mapping[str, str]  # by contender, in words
    failures: Sequence[str]


class Medians:
    """Medians over the rounds, by contender and workload."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self._all = measurements

    def measurements_of(self, contender: Contender, workload: Workload) -> list[Measurement]:
        return [
            measurement
            for measurement in self._all
            if (measurement.contender, measurement.workload) == (contender.name, workload.name)
        ]

    def value(self, contender: Contender, workload: Workload, get: Callable[[Measurement], float]) -> float:
        results = map(get, self.measurements_of(contender, workload))
        values = [value for value in results if not math.isnan(value)]
        return median(values) if values else math.nan

    def start_s(self, contender: Contender) -> float:
        starts = {
            measurement.round: measurement.start_s
            for measurement in self._all
            if measurement.contender == contender.name
        }
        return median(starts.values()) if starts else math.nan


def write(about: About, measurements: Sequence[Measurement], folder: Path) -> None:
    (folder / "report.md").write_text(render(about, measurements), encoding="utf-8")
    draw(Medians(measurements)).savefig(folder / "speed.png", dpi=120, bbox_inches="tight")


def progress_line(measurement: Measurement) -> str:
    """Return the progress line of a measurement."""
    labels = f"{measurement.round} {measurement.contender} {measurement.workload}"
    latency = f"p50 {measurement.p50_ms:.1f}, p99 {measurement.p99_ms:.1f} ms"
    cpu = f"{measurement.cpu_ms:.1f} ms of CPU per request"
    counts = f"{measurement.refused} refused, {measurement.broken} broken, {measurement.late} late"
    return f"{labels}: {measurement.texts_per_s:.1f} texts/s, {latency}, {cpu}, {counts} {measurement.note}"


def render(about: About, measurements: Sequence[Measurement]) -> str:
    rounds = len({measurement.round for measurement in measurements})
    return "\n".join(
        [
            f"# Serving, {date.today().isoformat()}",
            "",
            f"`make bench-serve`: {about.model}; {machine()}. Medians of {rounds} "
            f"interleaved rounds, {about.seconds:g} s per workload. The load generator runs on the same cores for all "
            "contenders; the last column shows its use. wrk runs a closed loop. In an open loop, latency counts from "
            "when a request was due.",
            "",
            *(f"- {text}" for text in about.texts),
            "",
            *_targets(measurements),
            *(row for workload in WORKLOADS for row in _table(workload, Medians(measurements))),
            *_settings(about.versions, Medians(measurements)),
            *_missing(about.failures),
        ]
    )


def _targets(measurements: Sequence[Measurement]) -> Iterator[str]:
    round_numbers = sorted({measurement.round for measurement in measurements})
    rounds = [
        Round([measurement for measurement in measurements if measurement.round == round_number])
        for round_number in round_numbers
    ]
    yield "| target | must | aim | measured | reached |"
    yield "|---|--:|--:|--:|---|"
    for target in TARGETS:
        value = target.measured(rounds)
        sign = "≤ " if target.at_most else ""
        bounds = f"{sign}{target.must:.2f} | {sign}{target.aim:.2f}"
        yield f"| {target.title} | {bounds} | {_number(value, 2)} | {target.verdict(value)} |"
    yield ""


def _table(workload: Workload, medians: Medians) -> Iterator[str]:
    rows = [contender for contender in CONTENDERS if medians.measurements_of(contender, workload)]
    if not rows:
        return
    yield f"**{workload.title}** (`{workload.name}`)"
    yield ""
    yield (
        "| | texts/s | range | p50, ms | p99, ms | CPU, ms per request | memory, GB | refused | broken | late | "
        "padded ÷ real | generator, cores |"
    )
    yield "|---|" + "--:|" * 11
    for contender in sorted(
        rows, key=lambda row: -medians.value(row, workload, lambda measurement: measurement.texts_per_s)
    ):
        yield f"| {contender.title}{_note(medians, contender, workload)} | {_row(medians, contender, workload)} |"
    yield ""


def _row(medians: Medians, contender: Contender, workload: Workload) -> str:
    def cell(get: Callable[[Measurement], float], digits: int) -> str:
        return _number(medians.value(contender, workload, get), digits)

    measurements = medians.measurements_of(contender, workload)
    rates = [measurement.texts_per_s for measurement in measurements]
    cells = [
        cell(lambda measurement: measurement.texts_per_s, 1),
        f"{min(rates):.0f}–{max(rates):.0f}",
        cell(lambda measurement: measurement.p50_ms, 1),
        cell(lambda measurement: measurement.p99_ms, 1),
        cell(lambda measurement: measurement.cpu_ms, 1),
        cell(lambda measurement: measurement.pss_bytes / 1e9, 2),
        *(
            str(sum(counts))
            for counts in zip(
                *((measurement.refused, measurement.broken, measurement.late) for measurement in measurements),
                strict=True,
            )
        ),
        cell(lambda measurement: measurement.padding, 3),
        cell(lambda measurement: measurement.generator_cores, 3),
    ]
    return " | ".join(cells)


def _note(medians: Medians, contender: Contender, workload: Workload) -> str:
    note = medians.measurements_of(contender, workload)[-1].note
    return f" ({note})" if note else ""


def _settings(versions: Mapping[str, str], medians: Medians) -> Iterator[str]:
    yield "| contender | versions | settings | ready after, s |"
    yield "|---|---|---|--:|"
    for contender in CONTENDERS:
        if contender.name in versions:
            ready_s = _number(medians.start_s(contender), 1)
            yield f"| {contender.title} | {versions[contender.name]} | {contender.settings} | {ready_s} |"
    yield ""


def _missing(failures: Sequence[str]) -> Iterator[str]:
    yield from (f"- Did not run: {failure}" for failure in failures)
    yield from (f"- Not measured: {name}, {reason}" for name, reason in ABSENT)
    yield ""


def draw(medians: Medians) -> Figure:
    """Return a picture of the texts per second of every contender, short and mixed side by side."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for position, workload in enumerate(_PICTURED, 1):
        axes = figure.add_subplot(1, len(_PICTURED), position)
        rates = [
            (medians.value(contender, workload, lambda measurement: measurement.texts_per_s), contender)
            for contender in CONTENDERS
        ]
        bars = sorted(
            (rate, contender.title, _COLOURS[contender.kind]) for rate, contender in rates if not math.isnan(rate)
        )
        axes.set_title(workload.title, loc="left", fontsize=11)
        axes.set_xlabel("texts per second")
        axes.spines[["top", "right"]].set_visible(False)
        if bars:
            values, titles, colours = zip(*bars, strict=True)
            axes.bar_label(axes.barh(titles, values, color=colours), fmt="%.0f", padding=3)
            axes.margins(x=0.12)
    return figure


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"
