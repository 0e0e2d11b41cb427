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
class Projected:
    """Of items, each (items, n): `coordinates` in the span of all tastes, what they have `asked` of events, and as what
    they `entered` the states of a history."""

    coordinates: Array
    asked: Array
    entered: Array

    def __len__(self) -> int:
        return len(self.coordinates)

    def __getitem__(self, chosen: Chosen | slice) -> Projected:
        return Projected(self.coordinates[chosen], self.asked[chosen], self.entered[chosen])

    def followed_by(self, more: Projected) -> Projected:
        return Projected(
            np.concatenate([self.coordinates, more.coordinates]),
            np.concatenate([self.asked, more.asked]),
            np.concatenate([self.entered, more.entered]),
        )


@dataclass(frozen=True, slots=True)
class Picked:
    """Some `rows` of projected items, None for all; only what is asked for is gathered."""

    items: Projected
    rows: Numbers | None = None

    def __len__(self) -> int:
        return len(self.items) if self.rows is None else len(self.rows)

    def __getitem__(self, chosen: Chosen) -> Picked:
        rows = np.arange(len(self.items)) if self.rows is None else self.rows
        return Picked(self.items, rows[chosen])

    def products(self, taste: Array) -> Array:
        """(rows,) with a taste by its coordinates: those of whole vectors."""
        found: Array = self._of(self.items.coordinates) @ taste
        return found

    @property
    def asked(self) -> Array:
        return self._of(self.items.asked)

    @property
    def entered(self) -> Array:
        return self._of(self.items.entered)

    def _of(self, values: Array) -> Array:
        return values if self.rows is None else values.take(self.rows, axis=0)


class Derived:
    """What was made of the rows of one file of vectors, of the first of them so far; any thread may ask."""

    def __init__(self) -> None:
        self._made: Projected | None = None

    def of(self, vectors: Array, make: Callable[[Array], Projected]) -> Projected:
        """By `make`, of `vectors` (rows, width), the first rows of the file."""
        made = self._made
        if made is None or len(made) < len(vectors):
            more = make(vectors if made is None else vectors[len(made) :])
            self._made = made = more if made is None else made.followed_by(more)
        return made if len(made) == len(vectors) else made[: len(vectors)]
