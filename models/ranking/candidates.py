"""Preselection of candidates for reranking by a first score of each, as pure functions of arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.catalogue.top_k import Array, Indices, top_k


def preselect(scores: Array, items: Indices | None, history_items: Indices, count: int) -> Indices:
    """Return the ascending indices of the candidates to rerank: the `count` best, and those of the history.

    `items` (candidates,) are the candidates' item numbers, their indices if None.
    """
    if len(scores) <= count:
        return np.arange(len(scores))
    mask = np.zeros(len(scores), np.bool_)
    mask[top_k(scores, count)] = True
    if items is None:
        mask[history_items[(history_items >= 0) & (history_items < len(scores))]] = True
    else:
        mask |= is_in(items, history_items)
    return np.flatnonzero(mask)


def is_in(items: Indices, members: Indices) -> NDArray[np.bool_]:
    """Return which items are among the members, like np.isin but faster.

    Items are numbers from 0. Negative members stand for no item.
    """
    table = np.zeros(max(items.max(initial=-1), members.max(initial=-1)) + 2, np.bool_)
    table[members] = True  # a member of -1 sets the last entry, which stands for no item
    mask: NDArray[np.bool_] = table[items]
    return mask
