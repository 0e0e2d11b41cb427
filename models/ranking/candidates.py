"""Which of many candidates are worth a close look, by a first score of each: pure functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.catalogue.top_k import Array, Numbers, top_k


def preselect(scores: Array, items: Numbers | None, own: Numbers, wanted: int) -> Numbers:
    """Ascending places of the candidates that are looked at closely: the `wanted` best, and the `own` items."""
    if len(scores) <= wanted:
        return np.arange(len(scores))
    near = np.zeros(len(scores), np.bool_)
    near[top_k(scores, wanted)] = True
    if items is None:
        near[own[(own >= 0) & (own < len(scores))]] = True
    else:
        near |= is_in(items, own)
    return np.flatnonzero(near)


def is_in(items: Numbers, own: Numbers) -> NDArray[np.bool_]:
    """Which of some items, numbers from 0, are among the `own`, where those below 0 are nothing: as np.isin, sooner."""
    there = np.zeros(max(items.max(initial=-1), own.max(initial=-1)) + 2, np.bool_)
    there[own] = True  # of -1 the last, which no item is
    found: NDArray[np.bool_] = there[items]
    return found
