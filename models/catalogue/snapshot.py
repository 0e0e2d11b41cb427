"""An immutable snapshot of a catalogue in memory, for ranking and filtering.

Its rows are those of the vector file, so one product over contiguous memory scores all items. A removed or superseded
row stays until the catalogue is compacted, and a mask leaves it out. This module does not know how items are stored.
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
    """A change of an item: its new row and content, or its removal if it has no row."""

    item_id: str
    row: int | None
    text: str
    attributes: Attributes
    popularity: float


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A catalogue at one version. An item is identified by its row.

    `vectors` (rows, width) are mapped, read-only and shared between processes. `digest` names the model that made them,
    and `file` is the file that holds them. `version` counts the edits. `index` covers the first rows, if there is one.
    All snapshots of a file share `projections`.
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
    projections: ProjectionCache = field(default_factory=ProjectionCache)

    @property
    def count(self) -> int:
        return len(self.row_by_id)

    @property
    def rows(self) -> int:
        return len(self.ids)

    def has(self, item_id: str, text: str) -> bool:
        """Return whether the catalogue has the item with this text."""
        row = self.row_by_id.get(item_id)
        return row is not None and self.texts[row] == text

    def filter_mask(self, conditions: Mapping[str, object] | None = None, excluding: Iterable[int] = ()) -> Mask | None:
        """Return a mask of the active rows that meet all conditions and are not excluded, or None if all rows do.

        A negative row, of an item that the catalogue lacks, excludes nothing. Raises FilterError.
        """
        mask = match_filter(self.columns, self.active, conditions) if conditions else self.active
        excluded = [row for row in excluding if row >= 0]
        if excluded:
            mask = mask.copy()
            mask[excluded] = False
        return None if mask is self.active and self.count == self.rows else mask

    def most_popular(self, top_k: int, allowed: Mask | None) -> NDArray[np.int64]:
        """Return the rows of at most `top_k` allowed items, most popular first. Ties keep the order of rows."""
        rows = self.items if allowed is None else np.flatnonzero(allowed)
        return rows[np.argsort(-self.popularity[rows], kind="stable")[:top_k]]

    def with_changes(
        self, changes: Sequence[Change], version: int, digest: str, vectors: NDArray[np.float32]
    ) -> Snapshot:
        """Return the catalogue after these changes, at most one for each item. `vectors` cover all its rows."""
        rows = len(vectors)
        added = rows - self.rows
        ids, texts = [*self.ids, *[""] * added], [*self.texts, *[""] * added]
        active = np.concatenate([self.active, np.zeros(added, np.bool_)])
        popularity = np.concatenate([self.popularity, np.zeros(added)])
        row_by_id = dict(self.row_by_id)
        attributes: dict[int, Attributes] = {}
        for change in changes:
            old = row_by_id.pop(change.item_id, None)
            if old is not None:
                ids[old] = texts[old] = ""
                active[old], popularity[old], attributes[old] = False, 0.0, {}
            if (row := change.row) is not None:
                ids[row], texts[row] = change.item_id, change.text
                active[row], popularity[row], attributes[row] = True, change.popularity, change.attributes
                row_by_id[change.item_id] = row
        return replace(
            self,
            version=version,
            digest=digest,
            ids=ids,
            texts=texts,
            vectors=vectors,
            popularity=popularity,
            active=active,
            items=np.arange(rows),
            row_by_id=row_by_id,
            columns=update_columns(self.columns, rows, attributes),
        )


def empty_snapshot(name: str, file: str, width: int) -> Snapshot:
    no_vectors = np.empty((0, width), np.float32)
    return Snapshot(name, "", 0, file, (), (), no_vectors, np.zeros(0), np.zeros(0, np.bool_), np.arange(0), {}, {})
