"""The k largest of many scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLE = 4_096
"""Scores that are looked at to guess which of very many are among the best."""

Array = NDArray[np.float32]
Numbers = NDArray[np.int64]


def top_k(scores: Array, wanted: int) -> Numbers:
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
