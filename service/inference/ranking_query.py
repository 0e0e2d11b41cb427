"""A user's history and candidates as item numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.catalogue.snapshot import Snapshot
from models.catalogue.vector_index import VectorIndex

_READ_COST, _LOOK_COST = 40, 25  # of an event and of a candidate looked at closely, in products with one item vector
_SENT_COST = 150  # of an item that came as a text, which is multiplied with the model's weights and all known items
_FEW = 1_000
"""Excluded items with which an index by lists can be asked: of more, it may have to leave out what it proposes."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InlineItem:
    """An item that came as a text, and where in the user's document."""

    item_id: str | None
    text: str
    pointer: str


@dataclass(frozen=True, slots=True, eq=False)
class RankingQuery:
    """Items are numbers: of the catalogue their rows, and from its last row on those of `sent`, in order.

    `items`, `kinds`, `ages` and `places` (events,) are what will be read, oldest first; places are those in the history
    as sent. `candidates` are numbers, each once, and `candidate_places` where each came first; None is the whole
    catalogue. `vectors` are those of `sent`, by the encoder, once they are known.
    """

    snapshot: Snapshot
    items: Numbers
    kinds: Numbers
    ages: NDArray[np.float32]
    history_positions: list[int]
    candidates: Numbers | None
    candidate_positions: Sequence[int]
    inline_items: tuple[InlineItem, ...]
    excluded: Numbers
    filter: Mapping[str, object] | None
    top_k: int
    min_new_items: int
    dropped: int
    skipped: int
    candidates_skipped: int
    candidates_repeated: int
    vectors: tuple[NDArray[np.float32], ...] = ()

    @property
    def index(self) -> VectorIndex | None:
        """To be asked, of the whole catalogue; what a filter leaves may be in lists that no taste looks through."""
        index = self.snapshot.index
        if index is None or self.candidates is not None:
            return None
        return index if index.exact or (self.filter is None and len(self.excluded) <= _FEW) else None

    @property
    def length(self) -> int:
        """What answering costs, in products with one item vector."""
        candidates = self.snapshot.rows if self.candidates is None else len(self.candidates)
        products = candidates if self.index is None else self.index.cost(candidates)
        once = products + _LOOK_COST * min(candidates, 4 * self.top_k) + _READ_COST * len(self.items)
        return 1 + (once + _SENT_COST * len(self.inline_items)) * (2 if self.min_new_items else 1)

    def with_vectors(self, vectors: Sequence[NDArray[np.float32]]) -> RankingQuery:
        return replace(self, vectors=tuple(vectors))
