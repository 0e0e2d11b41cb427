"""Selection of the k largest of many scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLE_SIZE = 4_096
"""Scores that are sampled to estimate a threshold when there are many."""

Array = NDArray[np.float32]
Indices = NDArray[np.int64]


def top_k(scores: Array, count: int) -> Indices:
    """Return the indices of the `count` largest scores, in no order.

    For many scores, a sample gives a threshold that about twice as many exceed, and only those are partitioned.
    Comparing all scores with one number costs a tenth of partitioning them.
    """
    step = len(scores) // SAMPLE_SIZE
    if step >= 2:
        sample = scores[::step]
        position = len(sample) - 1 - 2 * count * len(sample) // len(scores)
        if position > 0:
            above = np.flatnonzero(scores >= np.partition(sample, position)[position])
            if len(above) >= count:
                return above[np.argpartition(-scores[above], count - 1)[:count]]
    return np.argpartition(-scores, count - 1)[:count]
