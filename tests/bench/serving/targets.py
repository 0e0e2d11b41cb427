"""The targets of the service. Each is a ratio or a difference of measurements in the same round.

A value is the median over rounds. Changes of the machine's speed affect both sides of a ratio alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.serving.contenders import CONTENDERS, Kind
from tests.bench.serving.session import Measurement


class Round:
    """The measurements of a round. Missing values, and values computed from them, are NaN."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self._measurements = {(item.contender, item.workload): item for item in measurements}

    def rate(self, contender: str, workload: str) -> float:
        """Return texts per second."""
        return self.value(contender, workload, lambda measurement: measurement.texts_per_s)

    def value(self, contender: str, workload: str, get: Callable[[Measurement], float]) -> float:
        measurement = self._measurements.get((contender, workload))
        return get(measurement) if measurement else math.nan

    def best_system(self, workload: str) -> float:
        """Return texts per second of the fastest serving system with batching."""
        rates = [self.rate(contender.name, workload) for contender in CONTENDERS if contender.kind is Kind.BATCHING]
        return max((rate for rate in rates if not math.isnan(rate)), default=math.nan)


@dataclass(frozen=True, slots=True)
class Target:
    title: str
    must: float
    aim: float
    get: Callable[[Round], float]
    at_most: bool = False

    def measured(self, rounds: Sequence[Round]) -> float:
        values = [value for value in map(self.get, rounds) if not math.isnan(value)]
        return median(values) if values else math.nan

    def verdict(self, value: float) -> str:
        if math.isnan(value):
            return "not measured"
        reached = [value <= bound if self.at_most else value >= bound for bound in (self.must, self.aim)]
        return "aim" if all(reached) else "must" if reached[0] else "missed"


def _ratio(value: float, base: float) -> float:
    return value / base if base else math.nan


def _over(contender: str, workload: str, base: Callable[[Round], float]) -> Callable[[Round], float]:
    return lambda round_: _ratio(round_.rate(contender, workload), base(round_))


def _tail(workload: str) -> Callable[[Round], float]:
    return lambda round_: round_.value(
        "heed", workload, lambda measurement: _ratio(measurement.p99_ms, measurement.p50_ms)
    )


def _p50_ms(contender: str) -> Callable[[Round], float]:
    return lambda round_: round_.value(contender, "short-1", lambda measurement: measurement.p50_ms)


def _rate(contender: str, workload: str) -> Callable[[Round], float]:
    return lambda round_: round_.rate(contender, workload)


def _best_system(workload: str) -> Callable[[Round], float]:
    return lambda round_: round_.best_system(workload)


_SHORT, _MIXED = "short texts, 64 connections: Heed inline ÷ ", "mixed texts, 64 connections: Heed inline ÷ "

TARGETS = (
    Target(_SHORT + "limit", 0.74, 0.86, _over("heed", "short-64", _rate("limit", "short-64"))),
    Target(_SHORT + "best serving system", 1.4, 1.8, _over("heed", "short-64", _best_system("short-64"))),
    Target(_SHORT + "hand-made", 1.0, 1.2, _over("heed", "short-64", _rate("handmade", "short-64"))),
    Target(_MIXED + "best serving system", 2.0, 3.0, _over("heed", "mixed-64", _best_system("mixed-64"))),
    Target(_MIXED + "hand-made", 1.1, 1.4, _over("heed", "mixed-64", _rate("handmade", "mixed-64"))),
    Target("32 texts per request ÷ limit", 0.88, 0.95, _over("heed", "batch-32", _rate("limit", "short-64"))),
    Target(
        "padded ÷ real tokens, mixed texts",
        1.10,
        1.02,
        lambda round_: round_.value("heed", "mixed-64", lambda measurement: measurement.padding),
        at_most=True,
    ),
    Target(
        "one connection, p50: Heed − engine only, ms",
        2.5,
        1.2,
        lambda round_: _p50_ms("heed")(round_) - _p50_ms("limit")(round_),
        at_most=True,
    ),
    Target("one connection, p99 ÷ p50", 2.0, 1.3, _tail("short-1"), at_most=True),
    Target("arrivals at 80 % of capacity, p99 ÷ p50", 4.0, 2.5, _tail("open-80"), at_most=True),
    Target(
        "arrivals at 150 %: answers within 1 s ÷ capacity",
        0.90,
        0.98,
        _over("heed", "open-150", _rate("heed", "short-64")),
    ),
    Target(
        "remote placement ÷ inline, 64 connections",
        0.75,
        0.90,
        _over("heed-remote", "short-64", _rate("heed", "short-64")),
    ),
    Target(
        "intents ÷ sentiment (models of the same shape), short texts, 64 connections",
        0.90,
        1.0,
        _over("heed-intent", "short-64", _rate("heed", "short-64")),
    ),
)
