"""The Markdown report of the ablation: rates relative to the same round with all levers on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from statistics import median

import numpy as np

from tests.bench.ablation.levers import Lever
from tests.bench.harness.versions import machine
from tests.bench.serving.contenders import Contender
from tests.bench.serving.report import About, Medians
from tests.bench.serving.session import Measurement
from tests.bench.serving.targets import Round
from tests.bench.serving.workloads import WORKLOADS, Workload

Idle = Mapping[str, Sequence[float]]
"""By contender, per turn: the cores that all its processes used without requests."""


def render(about: About, levers: Sequence[Lever], rounds: int, measurements: Sequence[Measurement], idle: Idle) -> str:
    measured = [
        workload for workload in WORKLOADS if any(measurement.workload == workload.name for measurement in measurements)
    ]
    return "\n".join(
        [
            f"# Ablation of the levers, {date.today().isoformat()}",
            "",
            f"`make bench-ablation`: {about.model}; {machine()}. For each lever, a server with it and a server without "
            f"it run at the same time and get requests in turn, {rounds} times {about.seconds:g} s per workload. A "
            "rate is relative to the rate with all levers on in the same round. The table shows the median and, in "
            "brackets, the quartiles. Below 1, the lever helps. If the brackets reach above 1, it may be noise.",
            "",
            *(f"- {text}" for text in about.texts),
            *(f"- {name}: {versions}" for name, versions in about.versions.items()),
            "",
            *_summary(levers, measurements, measured, idle),
            *(row for workload in measured for row in _table(workload, levers, Medians(measurements))),
            *(f"- Did not run: {failure}" for failure in about.failures),
            "",
        ]
    )


def relative_rates(lever: Lever, workload: Workload, measurements: Sequence[Measurement]) -> list[float]:
    """Return the rate without the lever over the rate with all levers, for each round that has both."""
    pairs = [
        (turn.rate(lever.name, workload.name), turn.rate(lever.base.name, workload.name))
        for turn in _rounds(measurements)
    ]
    return [off / on for off, on in pairs if on > 0 and not math.isnan(off)]


def _rounds(measurements: Sequence[Measurement]) -> list[Round]:
    numbers = sorted({measurement.round for measurement in measurements})
    return [Round([measurement for measurement in measurements if measurement.round == number]) for number in numbers]


def _summary(
    levers: Sequence[Lever], measurements: Sequence[Measurement], measured: Sequence[Workload], idle: Idle
) -> Iterator[str]:
    medians = Medians(measurements)
    titles = " | ".join(workload.title for workload in measured)
    yield f"| off | replaced by | {titles} | ready after, s | idle, cores |"
    yield "|---|---|" + "--:|" * (len(measured) + 2)
    for base in _bases(levers):
        ones = " | ".join("1" for _ in measured)
        yield f"| {base.title} | {base.settings} | {ones} | {_rest(base, medians, idle)} |"
        for lever in (lever for lever in levers if lever.base == base):
            shares = [_range(relative_rates(lever, workload, measurements)) for workload in measured]
            rest = _rest(_as_contender(lever), medians, idle)
            yield f"| {lever.title} | {lever.off} | {' | '.join(shares)} | {rest} |"
    yield ""


def _rest(contender: Contender, medians: Medians, idle: Idle) -> str:
    idles = idle.get(contender.name, ())
    return f"{_number(medians.start_s(contender), 1)} | {_number(median(idles) if idles else math.nan, 2)}"


def _table(workload: Workload, levers: Sequence[Lever], medians: Medians) -> Iterator[str]:
    yield f"**{workload.title}** (`{workload.name}`)"
    yield ""
    yield "| off | texts/s | p50, ms | p99, ms | CPU, ms | memory, GB | padded ÷ real | refused, broken, late |"
    yield "|---|" + "--:|" * 7
    for base in _bases(levers):
        rows = [(base.title, base), *((lever.title, _as_contender(lever)) for lever in levers if lever.base == base)]
        for title, contender in rows:
            if medians.measurements_of(contender, workload):
                yield f"| {title} | {_row(contender, workload, medians)} |"
    yield ""


def _row(contender: Contender, workload: Workload, medians: Medians) -> str:
    measurements = medians.measurements_of(contender, workload)
    values = [
        (medians.value(contender, workload, lambda measurement: measurement.texts_per_s), 1),
        (medians.value(contender, workload, lambda measurement: measurement.p50_ms), 1),
        (medians.value(contender, workload, lambda measurement: measurement.p99_ms), 1),
        (medians.value(contender, workload, lambda measurement: measurement.cpu_ms), 1),
        (medians.value(contender, workload, lambda measurement: measurement.pss_bytes / 1e9), 2),
        (medians.value(contender, workload, lambda measurement: measurement.padding), 3),
    ]
    counts = zip(
        *((measurement.refused, measurement.broken, measurement.late) for measurement in measurements), strict=True
    )
    return " | ".join([*(_number(*value) for value in values), ", ".join(str(sum(count)) for count in counts)])


def _bases(levers: Sequence[Lever]) -> list[Contender]:
    return list({lever.base.name: lever.base for lever in levers}.values())


def _as_contender(lever: Lever) -> Contender:
    """Return a contender with the name of the lever, for `Medians`."""
    return Contender(lever.name, lever.title, lever.base.kind, lever.off)


def _range(shares: Sequence[float]) -> str:
    if not shares:
        return "–"
    low, high = np.quantile(shares, (0.25, 0.75))
    return f"{median(shares):.2f} ({low:.2f}–{high:.2f})"


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"
