"""What each lever is worth, as a Markdown report: rates beside those of the same round with all levers on."""

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
"""By contender, one a turn: cores that all its processes used while nothing was asked."""


def markdown(
    about: About, levers: Sequence[Lever], rounds: int, measurements: Sequence[Measurement], idle: Idle
) -> str:
    measured = [workload for workload in WORKLOADS if any(one.workload == workload.name for one in measurements)]
    return "\n".join(
        [
            f"# What each lever is worth, {date.today().isoformat()}",
            "",
            f"`make bench-ablation`: {about.model}; {machine()}. For each lever the server with it and the one without "
            f"are up at once and are asked in turn, {rounds} times {about.seconds:g} s a workload. A rate is a share "
            "of that with all levers on in the same round, the median, and the middle half of the rounds in brackets: "
            "below 1, the lever gains. Where the brackets reach over 1 it is not told from noise.",
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


def share(lever: Lever, workload: Workload, measurements: Sequence[Measurement]) -> list[float]:
    """Of the rate with all levers on, one for each round that has both."""
    pairs = [
        (one.rate(lever.name, workload.name), one.rate(lever.of.name, workload.name)) for one in _rounds(measurements)
    ]
    return [off / on for off, on in pairs if on > 0 and not math.isnan(off)]


def _rounds(measurements: Sequence[Measurement]) -> list[Round]:
    numbers = sorted({one.round for one in measurements})
    return [Round([one for one in measurements if one.round == number]) for number in numbers]


def _summary(
    levers: Sequence[Lever], measurements: Sequence[Measurement], measured: Sequence[Workload], idle: Idle
) -> Iterator[str]:
    medians = Medians(measurements)
    yield f"| off | in its place | {' | '.join(one.title for one in measured)} | ready after, s | idle, cores |"
    yield "|---|---|" + "--:|" * (len(measured) + 2)
    for base in _bases(levers):
        yield f"| {base.title} | {base.settings} | {' | '.join('1' for _ in measured)} | {_rest(base, medians, idle)} |"
        for lever in (one for one in levers if one.of == base):
            shares = [_range(share(lever, workload, measurements)) for workload in measured]
            rest = _rest(_named(lever), medians, idle)
            yield f"| {lever.title} | {lever.off} | {' | '.join(shares)} | {rest} |"
    yield ""


def _rest(contender: Contender, medians: Medians, idle: Idle) -> str:
    idles = idle.get(contender.name, ())
    return f"{_number(medians.start_s(contender), 1)} | {_number(median(idles) if idles else math.nan, 2)}"


def _table(workload: Workload, levers: Sequence[Lever], medians: Medians) -> Iterator[str]:
    yield f"**{workload.title}** (`{workload.name}`)"
    yield ""
    yield "| off | texts/s | p50, ms | p99, ms | CPU, ms each | memory, GB | padded ÷ real | refused, broken, late |"
    yield "|---|" + "--:|" * 7
    for base in _bases(levers):
        rows = [(base.title, base), *((one.title, _named(one)) for one in levers if one.of == base)]
        for title, contender in rows:
            if medians.found(contender, workload):
                yield f"| {title} | {_row(contender, workload, medians)} |"
    yield ""


def _row(contender: Contender, workload: Workload, medians: Medians) -> str:
    found = medians.found(contender, workload)
    values = [
        (medians.value(contender, workload, lambda one: one.texts_per_s), 1),
        (medians.value(contender, workload, lambda one: one.p50_ms), 1),
        (medians.value(contender, workload, lambda one: one.p99_ms), 1),
        (medians.value(contender, workload, lambda one: one.cpu_ms), 1),
        (medians.value(contender, workload, lambda one: one.pss_bytes / 1e9), 2),
        (medians.value(contender, workload, lambda one: one.padding), 3),
    ]
    counts = zip(*((one.refused, one.broken, one.late) for one in found), strict=True)
    return " | ".join([*(_number(*value) for value in values), ", ".join(str(sum(count)) for count in counts)])


def _bases(levers: Sequence[Lever]) -> list[Contender]:
    return list({lever.of.name: lever.of for lever in levers}.values())


def _named(lever: Lever) -> Contender:
    """For `Medians`, which goes by the name."""
    return Contender(lever.name, lever.title, lever.of.kind, lever.off)


def _range(shares: Sequence[float]) -> str:
    if not shares:
        return "–"
    low, high = np.quantile(shares, (0.25, 0.75))
    return f"{median(shares):.2f} ({low:.2f}–{high:.2f})"


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"
