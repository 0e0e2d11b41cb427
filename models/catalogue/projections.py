"""Item vectors as a ranking asks of them: their products with a model's weights, taken once and not for each request.

Of a catalogue they are kept as long as its file of vectors is, since a row of that never changes. Knows arrays alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Numbers = NDArray[np.int64]
Chosen = Numbers | NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class ItemProjections:
    """Of items, each (items, n): `coordinates` in the span of all tastes, what they have `asked` of events, and as what
    they `entered` the states of a history."""

    coordinates: Array
    queries: Array
    inputs: Array

    def __len__(self) -> int:
        return len(self.coordinates)

    def __getitem__(self, chosen: Chosen | slice) -> ItemProjections:
        return ItemProjections(self.coordinates[chosen], self.queries[chosen], self.inputs[chosen])

    def followed_by(self, more: ItemProjections) -> ItemProjections:
        return ItemProjections(
            np.concatenate([self.coordinates, more.coordinates]),
            np.concatenate([self.queries, more.queries]),
            np.concatenate([self.inputs, more.inputs]),
        )


@dataclass(frozen=True, slots=True)
class ProjectionView:
    """Some `rows` of projected items, None for all; only what is asked for is gathered."""

    items: ItemProjections
    rows: Numbers | None = None

    def __len__(self) -> int:
        return len(self.items) if self.rows is None else len(self.rows)

    def __getitem__(self, chosen: Chosen) -> ProjectionView:
        rows = np.arange(len(self.items)) if self.rows is None else self.rows
        return ProjectionView(self.items, rows[chosen])

    def products(self, taste: Array) -> Array:
        """(rows,) with a taste by its coordinates: those of whole vectors."""
        found: Array = self._of(self.items.coordinates) @ taste
        return found

    @property
    def queries(self) -> Array:
        return self._of(self.items.queries)

    @property
    def inputs(self) -> Array:
        return self._of(self.items.inputs)

    def _of(self, values: Array) -> Array:
        return values if self.rows is None else values.take(self.rows, axis=0)


class ProjectionCache:
    """What was made of the rows of one file of vectors, of the first of them so far; any thread may ask."""

    def __init__(self) -> None:
        self._made: ItemProjections | None = None

    def of(self, vectors: Array, make: Callable[[Array], ItemProjections]) -> ItemProjections:
        """By `make`, of `vectors` (rows, width), the first rows of the file."""
        made = self._made
        if made is None or len(made) < len(vectors):
            more = make(vectors if made is None else vectors[len(made) :])
            self._made = made = more if made is None else made.followed_by(more)
        return made if len(made) == len(vectors) else made[: len(vectors)]
