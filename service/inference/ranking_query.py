"""The ranking query: a user's history and candidates as item numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.catalogue.snapshot import Snapshot
from models.catalogue.vector_index import VectorIndex

# Costs in products with one item vector.
_EVENT_COST = 40  # of an event of the history
_RERANK_COST = 25  # of a candidate that is reranked
_INLINE_COST = 150  # of an inline item, which is multiplied with the model's weights and all known items
_MAX_INDEX_EXCLUDED = 1_000
"""The maximum number of excluded items for an inverted index. With more, too many of its results may be excluded."""

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InlineItem:
    """An item that the request sent as a text, with the pointer to it in the user's document."""

    item_id: str | None
    text: str
    pointer: str


@dataclass(frozen=True, slots=True, eq=False)
class RankingQuery:
    """A query for one ranking. Items are numbers: rows of the catalogue, followed by the inline items in order.

    `items`, `kinds`, `ages` and `history_positions` (events,) describe the events to read, oldest first. Positions are
    those in the history of the request. `candidates` are distinct numbers, or None for the whole catalogue, and
    `candidate_positions` tell where each came first. `vectors` are the encoder's vectors of the inline items, once they
    are known.
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
        """The index to search, or None to score all rows.

        Only the whole catalogue has one. Items that pass a filter may be in lists that no user vector probes.
        """
        index = self.snapshot.index
        if index is None or self.candidates is not None:
            return None
        return index if index.exact or (self.filter is None and len(self.excluded) <= _MAX_INDEX_EXCLUDED) else None

    @property
    def length(self) -> int:
        """The cost of the ranking, in products with one item vector."""
        candidates = self.snapshot.rows if self.candidates is None else len(self.candidates)
        products = candidates if self.index is None else self.index.cost(candidates)
        once = products + _RERANK_COST * min(candidates, 4 * self.top_k) + _EVENT_COST * len(self.items)
        return 1 + (once + _INLINE_COST * len(self.inline_items)) * (2 if self.min_new_items else 1)

    def with_vectors(self, vectors: Sequence[NDArray[np.float32]]) -> RankingQuery:
        """Return the query with the vectors of its inline items."""
        return replace(self, vectors=tuple(vectors))
