"""Encodings of texts, and padded batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Encoding:
    """One encoded text: `ids` and `types`, each of shape (length,)."""

    ids: NDArray[np.int64]
    token_types: NDArray[np.int64]
    truncated: bool
    language: str

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def has_entity(self) -> bool:
        """Whether the answer is to be about an entity."""
        return bool(self.token_types.any())


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded texts: `ids`, `mask` and `types`, each of shape (batch, length)."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    token_types: NDArray[np.int64]


def collate(items: Sequence[Encoding], pad: int) -> Batch:
    """One batch, padded to its longest text."""
    shape = (len(items), max(item.length for item in items))
    ids, mask, types = np.full(shape, pad, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, item in enumerate(items):
        ids[row, : item.length] = item.ids
        types[row, : item.length] = item.token_types
        mask[row, : item.length] = 1
    return Batch(ids, mask, types)
