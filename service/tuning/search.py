"""Hill climbing over measured candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

NOISE = 0.03
"""The relative difference between two rates that does not count."""

PATIENCE = 2
"""Trials in a row without a gain that end a search. A single one may have been disturbed."""

Choice = TypeVar("Choice")
Readings = list[tuple[Choice, float]]
"""The choices that were tried, in order, each with its rate."""


def doubling(first: int, last: int) -> list[int]:
    """Return `first` and its doubles, up to the first that reaches `last`."""
    numbers = [first]
    while numbers[-1] < last:
        numbers.append(2 * numbers[-1])
    return numbers


def search_while_gaining(
    candidates: Iterable[Choice], rate: Callable[[Choice], float], earlier: Sequence[tuple[Choice, float]] = ()
) -> Readings[Choice]:
    """Return the earlier readings and those of the candidates, up to PATIENCE in a row without a gain over the best."""
    readings, idle = list(earlier), 0
    for candidate in candidates:
        best = max((reading for _, reading in readings), default=0.0)
        readings.append((candidate, rate(candidate)))
        idle = 0 if readings[-1][1] > best * (1 + NOISE) else idle + 1
        if idle == PATIENCE:
            break
    return readings


def smallest_near_best(readings: Readings[Choice]) -> Choice:
    """Return the first choice that is as fast as the fastest, apart from noise."""
    best = max(rate for _, rate in readings)
    return next(choice for choice, rate in readings if rate >= best * (1 - NOISE))
