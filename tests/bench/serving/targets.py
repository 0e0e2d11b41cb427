"""The figures that the service is held to, each a ratio or a difference of measurements of the same round.

Taken round by round and then the median: what the machine does to one round it does to both sides of a ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.serving.contenders import CONTENDERS, Kind
from tests.bench.serving.session import Measurement


class Round:
    """The measurements of one round; what is missing is NaN, and so is what is computed from it."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self._found = {(one.contender, one.workload): one for one in measurements}

    def rate(self, contender: str, workload: str) -> float:
        """Texts per second."""
        return self.value(contender, workload, lambda one: one.texts_per_s)

    def value(self, contender: str, workload: str, of: Callable[[Measurement], float]) -> float:
        found = self._found.get((contender, workload))
        return of(found) if found else math.nan

    def best_system(self, workload: str) -> float:
        """Texts per second of the fastest serving system with its batching on."""
        rates = [self.rate(one.name, workload) for one in CONTENDERS if one.kind is Kind.BATCHING]
        return max((rate for rate in rates if not math.isnan(rate)), default=math.nan)


@dataclass(frozen=True, slots=True)
class Figure:
    title: str
    must: float
    aim: float
    of: Callable[[Round], float]
    at_most: bool = False

    def measured(self, rounds: Sequence[Round]) -> float:
        values = [value for one in rounds if not math.isnan(value := self.of(one))]
        return median(values) if values else math.nan

    def verdict(self, value: float) -> str:
        if math.isnan(value):
            return "not measured"
        reached = [value <= bound if self.at_most else value >= bound for bound in (self.must, self.aim)]
        return "aim" if all(reached) else "must" if reached[0] else "missed"


def _ratio(value: float, base: float) -> float:
    return value / base if base else math.nan


def _over(contender: str, workload: str, base: Callable[[Round], float]) -> Callable[[Round], float]:
    return lambda one: _ratio(one.rate(contender, workload), base(one))


def _tail(workload: str) -> Callable[[Round], float]:
    return lambda one: one.value("heed", workload, lambda found: _ratio(found.p99_ms, found.p50_ms))


def _p50_ms(contender: str) -> Callable[[Round], float]:
    return lambda one: one.value(contender, "short-1", lambda found: found.p50_ms)


def _rate(contender: str, workload: str) -> Callable[[Round], float]:
    return lambda one: one.rate(contender, workload)


_SHORT, _MIXED = "short texts, 64 connections: Heed inline ÷ ", "mixed texts, 64 connections: Heed inline ÷ "

FIGURES = (
    Figure(_SHORT + "limit", 0.74, 0.86, _over("heed", "short-64", _rate("limit", "short-64"))),
    Figure(
        _SHORT + "best serving system", 1.4, 1.8, _over("heed", "short-64", lambda one: one.best_system("short-64"))
    ),
    Figure(_SHORT + "hand-made", 1.0, 1.2, _over("heed", "short-64", _rate("handmade", "short-64"))),
    Figure(
        _MIXED + "best serving system", 2.0, 3.0, _over("heed", "mixed-64", lambda one: one.best_system("mixed-64"))
    ),
    Figure(_MIXED + "hand-made", 1.1, 1.4, _over("heed", "mixed-64", _rate("handmade", "mixed-64"))),
    Figure("32 texts a request ÷ limit", 0.88, 0.95, _over("heed", "batch-32", _rate("limit", "short-64"))),
    Figure(
        "padded ÷ real tokens, mixed texts",
        1.10,
        1.02,
        lambda one: one.value("heed", "mixed-64", lambda found: found.padding),
        at_most=True,
    ),
    Figure(
        "one connection, p50: Heed − engine alone, ms",
        2.5,
        1.2,
        lambda one: _p50_ms("heed")(one) - _p50_ms("limit")(one),
        at_most=True,
    ),
    Figure("one connection, p99 ÷ p50", 2.0, 1.3, _tail("short-1"), at_most=True),
    Figure("arrivals at 80 % of capacity, p99 ÷ p50", 4.0, 2.5, _tail("open-80"), at_most=True),
    Figure(
        "arrivals at 150 %: answers within 1 s ÷ capacity",
        0.90,
        0.98,
        _over("heed", "open-150", _rate("heed", "short-64")),
    ),
    Figure(
        "remote placement ÷ inline, 64 connections",
        0.75,
        0.90,
        _over("heed-remote", "short-64", _rate("heed", "short-64")),
    ),
    Figure(
        "intents ÷ sentiment (models of the same shape), short texts, 64 connections",
        0.90,
        1.0,
        _over("heed-intent", "short-64", _rate("heed", "short-64")),
    ),
)
