"""Hill climbing over measured candidates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

NOISE = 0.03
"""Shares of a rate that are no difference."""

PATIENCE = 2
"""Trials in a row that may gain nothing: one alone may have been disturbed."""

Choice = TypeVar("Choice")
Readings = list[tuple[Choice, float]]
"""What was tried, in order, with its rate."""


def doubling(first: int, last: int) -> list[int]:
    """From the first, each twice the one before, until the last is reached."""
    found = [first]
    while found[-1] < last:
        found.append(2 * found[-1])
    return found


def search_while_gaining(
    candidates: Iterable[Choice], rate: Callable[[Choice], float], found: Sequence[tuple[Choice, float]] = ()
) -> Readings[Choice]:
    """Add readings to those found, candidate by candidate, until too many gain nothing over the best."""
    readings, idle = list(found), 0
    for candidate in candidates:
        best = max((reading for _, reading in readings), default=0.0)
        readings.append((candidate, rate(candidate)))
        idle = 0 if readings[-1][1] > best * (1 + NOISE) else idle + 1
        if idle == PATIENCE:
            break
    return readings


def smallest_near_best(readings: Readings[Choice]) -> Choice:
    """The first that is as fast as the fastest, but for noise."""
    best = max(rate for _, rate in readings)
    return next(choice for choice, rate in readings if rate >= best * (1 - NOISE))
