"""Encodings of texts, and padded batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Encoding:
    """An encoded text: `ids` and `token_types`, each of shape (length,).

    `language` is the one by which a model calibrates. `is_foreign` marks a text in neither of its languages.
    `names_entity` is false if the prediction is to be about an entity that the text does not name.
    """

    ids: NDArray[np.int64]
    token_types: NDArray[np.int64]
    truncated: bool
    language: str
    names_entity: bool = True
    is_foreign: bool = False

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def has_entity(self) -> bool:
        """True if the prediction is to be about an entity."""
        return bool(self.token_types.any())


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded encodings: `ids`, `mask` and `token_types`, each of shape (batch, length)."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    token_types: NDArray[np.int64]


def collate(encodings: Sequence[Encoding], pad_id: int) -> Batch:
    """Return a batch, padded to its longest encoding."""
    shape = (len(encodings), max(encoding.length for encoding in encodings))
    ids, mask, types = np.full(shape, pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, encoding in enumerate(encodings):
        ids[row, : encoding.length] = encoding.ids
        types[row, : encoding.length] = encoding.token_types
        mask[row, : encoding.length] = 1
    return Batch(ids, mask, types)
