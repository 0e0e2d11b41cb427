"""What is put into a catalogue and what becomes of it, and every way in which that can be refused.

Knows nothing of how a catalogue is kept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.catalogue.attributes import Attributes
from models.catalogue.errors import EditError

MAX_ATTRIBUTES = 100
"""Different ones in a catalogue: each is a column over all rows."""

MAX_EXACT_INTEGER = 2**53
"""Whole numbers up to it are told apart as floats."""

Outcome = Literal["added", "changed", "removed", "unchanged"]
Vector = NDArray[np.float32]
Content = tuple[str, str, float]
"""Text, attributes as JSON and popularity of an item, as they are kept: equal when nothing changed."""


@dataclass(frozen=True, slots=True)
class Item:
    item_id: str
    text: str
    attributes: Attributes = field(default_factory=dict)
    popularity: float = 0.0

    def content(self) -> Content:
        """Raises EditError."""
        values = [*self.attributes.values(), self.popularity]
        numbers = [value for value in values if not isinstance(value, str | bool)]
        if not all(
            abs(number) <= MAX_EXACT_INTEGER if isinstance(number, int) else math.isfinite(number) for number in numbers
        ):
            raise EditError(f"item {self.item_id!r}: a number in it is not finite, or whole and too large to be exact")
        floats = {
            name: value if isinstance(value, str | bool) else float(value) for name, value in self.attributes.items()
        }
        return self.text, json.dumps(floats, ensure_ascii=False, sort_keys=True), float(self.popularity)


@dataclass(frozen=True, slots=True)
class EditResult:
    """What became of each entry, then of each id to remove; `version` and `count` are the catalogue's since."""

    outcomes: tuple[Outcome, ...]
    version: int
    count: int


def edit_outcome(old: Content | None, new: Content) -> Outcome:
    return "added" if old is None else "unchanged" if old == new else "changed"


def stacked(vectors: Sequence[Vector], width: int) -> Vector:
    """(vectors, width); raises EditError for what is no vector of this width."""
    if any(vector.shape != (width,) or not np.isfinite(vector).all() for vector in vectors):
        raise EditError(f"a vector is not one of {width} finite numbers")
    return np.stack(vectors).astype(np.float32, copy=False) if vectors else np.empty((0, width), np.float32)
