"""A catalogue at one moment, in memory: what a request ranks, filters and leaves out. It never changes.

Rows are those of the vectors' file, so that all items are scored by one product over contiguous memory. A removed or
superseded row stays until the catalogue is compacted and is left out by a mask. Knows nothing of how items are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from models.catalogue.attributes import Attributes, Columns, Mask, match_filter, update_columns
from models.catalogue.projections import ProjectionCache
from models.catalogue.vector_index import VectorIndex


@dataclass(frozen=True, slots=True)
class Change:
    """What became of an item: it has this row and content, or, with no row, is there no longer."""

    item_id: str
    row: int | None
    text: str
    attributes: Attributes
    popularity: float


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """An item's number is its row. `vectors` (rows, width) are mapped, read-only and shared between processes.

    `digest` names the model that made the vectors, `file` is what they are mapped from, `version` counts the edits;
    `index` is of the first of its rows, where there is one, and `derived` is what all snapshots of the file share.
    """

    name: str
    digest: str
    version: int
    file: str
    ids: Sequence[str]
    texts: Sequence[str]
    vectors: NDArray[np.float32]
    popularity: NDArray[np.float64]
    active: Mask
    items: NDArray[np.int64]
    row_by_id: Mapping[str, int]
    columns: Columns
    index: VectorIndex | None = None
    derived: ProjectionCache = field(default_factory=ProjectionCache)

    @property
    def count(self) -> int:
        return len(self.row_by_id)

    @property
    def rows(self) -> int:
        return len(self.ids)

    def has(self, item_id: str, text: str) -> bool:
        """Whether the item is there, with this text."""
        row = self.row_by_id.get(item_id)
        return row is not None and self.texts[row] == text

    def filter_mask(self, given: Mapping[str, object] | None = None, excluding: Iterable[int] = ()) -> Mask | None:
        """The rows that meet the filter `given` and are none of `excluding`, or None when all do; raises FilterError.

        A number below 0, of an item that is not here, excludes nothing.
        """
        mask = match_filter(self.columns, self.active, given) if given else self.active
        left_out = [number for number in excluding if number >= 0]
        if left_out:
            mask = mask.copy()
            mask[left_out] = False
        return None if mask is self.active and self.count == self.rows else mask

    def most_popular(self, top_k: int, allowed: Mask | None) -> NDArray[np.int64]:
        """Rows of the most popular items that are allowed, at most `top_k`; the first row first among equals."""
        rows = self.items if allowed is None else np.flatnonzero(allowed)
        return rows[np.argsort(-self.popularity[rows], kind="stable")[:top_k]]

    def with_changes(
        self, changes: Sequence[Change], version: int, digest: str, vectors: NDArray[np.float32]
    ) -> Snapshot:
        """The catalogue with these changes, one for each item; `vectors` reach over all its rows."""
        rows = len(vectors)
        more = rows - self.rows
        ids, texts = [*self.ids, *[""] * more], [*self.texts, *[""] * more]
        live = np.concatenate([self.active, np.zeros(more, np.bool_)])
        popularity = np.concatenate([self.popularity, np.zeros(more)])
        number_of = dict(self.row_by_id)
        attributes: dict[int, Attributes] = {}
        for change in changes:
            old = number_of.pop(change.item_id, None)
            if old is not None:
                ids[old] = texts[old] = ""
                live[old], popularity[old], attributes[old] = False, 0.0, {}
            if (row := change.row) is not None:
                ids[row], texts[row] = change.item_id, change.text
                live[row], popularity[row], attributes[row] = True, change.popularity, change.attributes
                number_of[change.item_id] = row
        return replace(
            self,
            version=version,
            digest=digest,
            ids=ids,
            texts=texts,
            vectors=vectors,
            popularity=popularity,
            active=live,
            items=np.arange(rows),
            row_by_id=number_of,
            columns=update_columns(self.columns, rows, attributes),
        )


def empty_snapshot(name: str, file: str, width: int) -> Snapshot:
    nothing = np.empty((0, width), np.float32)
    return Snapshot(name, "", 0, file, (), (), nothing, np.zeros(0), np.zeros(0, np.bool_), np.arange(0), {}, {})
