"""Which of many candidates are worth a close look, by a first score of each: pure functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLE = 4_096
"""Scores that are looked at to guess which of very many are among the best."""

Array = NDArray[np.float32]
Numbers = NDArray[np.int64]


def preselected(scores: Array, items: Numbers | None, own: Numbers, wanted: int) -> Numbers:
    """Ascending places of the candidates that are looked at closely: the `wanted` best, and the `own` items."""
    if len(scores) <= wanted:
        return np.arange(len(scores))
    near = np.zeros(len(scores), np.bool_)
    near[best(scores, wanted)] = True
    if items is None:
        near[own[(own >= 0) & (own < len(scores))]] = True
    else:
        near |= among(items, own)
    return np.flatnonzero(near)


def among(items: Numbers, own: Numbers) -> NDArray[np.bool_]:
    """Which of some items, numbers from 0, are among the `own`, where those below 0 are nothing: as np.isin, sooner."""
    there = np.zeros(max(items.max(initial=-1), own.max(initial=-1)) + 2, np.bool_)
    there[own] = True  # of -1 the last, which no item is
    found: NDArray[np.bool_] = there[items]
    return found


def best(scores: Array, wanted: int) -> Numbers:
    """Places of the `wanted` largest, in no order.

    Of very many, first those are taken that are above what a sample says about twice as many are: comparing all with
    one number costs a tenth of partitioning them.
    """
    step = len(scores) // SAMPLE
    if step >= 2:
        sample = scores[::step]
        place = len(sample) - 1 - 2 * wanted * len(sample) // len(scores)
        if place > 0:
            above = np.flatnonzero(scores >= np.partition(sample, place)[place])
            if len(above) >= wanted:
                return above[np.argpartition(-scores[above], wanted - 1)[:wanted]]
    return np.argpartition(-scores, wanted - 1)[:wanted]
