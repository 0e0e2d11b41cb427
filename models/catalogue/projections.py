"""Products of item vectors with a model's weights, computed once instead of for each request.

A catalogue caches them as long as its vector file lives, since a row of that file never changes. This module knows
only arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Indices = NDArray[np.int64]
Selection = Indices | NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ItemProjections:
    """Three projections of items, each (items, n).

    `coordinates` are in the subspace of all user vectors, `queries` are those of candidate attention, and `inputs` are
    what the items add to the states of a history.
    """

    coordinates: Array
    queries: Array
    inputs: Array

    def __len__(self) -> int:
        return len(self.coordinates)

    def __getitem__(self, selection: Selection | slice) -> ItemProjections:
        return ItemProjections(self.coordinates[selection], self.queries[selection], self.inputs[selection])

    def extend(self, added: ItemProjections) -> ItemProjections:
        """Return these items followed by the added ones."""
        return ItemProjections(
            np.concatenate([self.coordinates, added.coordinates]),
            np.concatenate([self.queries, added.queries]),
            np.concatenate([self.inputs, added.inputs]),
        )


@dataclass(frozen=True, slots=True)
class ProjectionView:
    """A selection of projected items by `rows`, None for all. Only the arrays that are read are gathered."""

    items: ItemProjections
    rows: Indices | None = None

    def __len__(self) -> int:
        return len(self.items) if self.rows is None else len(self.rows)

    def __getitem__(self, selection: Selection) -> ProjectionView:
        rows = np.arange(len(self.items)) if self.rows is None else self.rows
        return ProjectionView(self.items, rows[selection])

    def products(self, coordinates: Array) -> Array:
        """Return the products (rows,) with a user vector in these coordinates, equal to those of whole vectors."""
        products: Array = self._gather(self.items.coordinates) @ coordinates
        return products

    @property
    def queries(self) -> Array:
        return self._gather(self.items.queries)

    @property
    def inputs(self) -> Array:
        return self._gather(self.items.inputs)

    def _gather(self, values: Array) -> Array:
        return values if self.rows is None else values.take(self.rows, axis=0)


class ProjectionCache:
    """The projections of the first rows of one vector file. Any thread may call it."""

    def __init__(self) -> None:
        self._projections: ItemProjections | None = None

    def get(self, vectors: Array, project: Callable[[Array], ItemProjections]) -> ItemProjections:
        """Return the projections of `vectors` (rows, width), the first rows of the file.

        Only rows that are not cached are projected.
        """
        cached = self._projections
        if cached is None or len(cached) < len(vectors):
            added = project(vectors if cached is None else vectors[len(cached) :])
            self._projections = cached = added if cached is None else cached.extend(added)
        return cached if len(cached) == len(vectors) else cached[: len(vectors)]
