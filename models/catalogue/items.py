"""Items of a catalogue, their validation, and the result of an edit.

This module does not know how a catalogue is stored.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.catalogue.attributes import Attributes
from models.catalogue.errors import CatalogueFullError, EditError
from models.prediction.ranges import MAX_WEIGHT

MAX_ATTRIBUTES = 100
"""Distinct attributes in a catalogue. Each is a column over all rows."""

MAX_NUMBER = 2**53
"""The largest magnitude of a number. Up to it every integer is exact as a float, and sums of numbers are finite."""

Outcome = Literal["added", "changed", "removed", "unchanged"]
Vector = NDArray[np.float32]
Content = tuple[str, str, float]
"""Text, attributes as JSON and popularity of an item, as they are stored. Equal contents mean no change."""


@dataclass(frozen=True, slots=True)
class Item:
    item_id: str
    text: str
    attributes: Attributes = field(default_factory=dict)
    popularity: float = 0.0

    def content(self) -> Content:
        """Return the content to store. Raises EditError for a number outside its range."""
        numbers = [value for value in self.attributes.values() if not isinstance(value, str | bool)]
        if not all(-MAX_NUMBER <= number <= MAX_NUMBER for number in numbers):
            raise EditError(f"item {self.item_id!r}: the numbers of attributes should be from -2**53 to 2**53")
        if not is_popularity(self.popularity):
            raise EditError(f"item {self.item_id!r}: its popularity should be a number from 0 to 2**53")
        floats = {
            name: value if isinstance(value, str | bool) else float(value) for name, value in self.attributes.items()
        }
        return self.text, json.dumps(floats, ensure_ascii=False, sort_keys=True), float(self.popularity)


def is_popularity(value: object) -> bool:
    """Return whether a value can be the popularity of an item."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER


@dataclass(frozen=True, slots=True)
class CatalogueLimits:
    """The items that edits may give a catalogue, and the bytes of their texts, attributes and vectors."""

    items: int
    bytes: int

    def check(self, name: str, before: tuple[int, int], after: tuple[int, int]) -> None:
        """Raise CatalogueFullError if items or bytes have grown beyond a limit."""
        for limit, old, new, allowed in zip(("items", "bytes"), before, after, (self.items, self.bytes), strict=True):
            if new > max(old, allowed):
                raise CatalogueFullError(name, limit, new, allowed)


@dataclass(frozen=True, slots=True)
class EditResult:
    """The outcome of each item, then of each ID to remove.

    `version` and `count` are those of the catalogue after the edit.
    """

    outcomes: tuple[Outcome, ...]
    version: int
    count: int


def edit_outcome(old: Content | None, new: Content) -> Outcome:
    return "added" if old is None else "unchanged" if old == new else "changed"


def stack_vectors(vectors: Sequence[Vector], width: int) -> Vector:
    """Return an array (vectors, width). Raises EditError for a wrong width or a number outside its range."""
    if any(vector.shape != (width,) or not (np.abs(vector) <= MAX_WEIGHT).all() for vector in vectors):
        raise EditError(f"a vector does not have {width} numbers from {-MAX_WEIGHT:g} to {MAX_WEIGHT:g}")
    return np.stack(vectors).astype(np.float32, copy=False) if vectors else np.empty((0, width), np.float32)
