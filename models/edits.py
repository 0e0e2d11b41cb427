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

from models.attributes import Attributes

MAX_ATTRIBUTES = 100
"""Different ones in a catalogue: each is a column over all rows."""

MOST_EXACT = 2**53
"""Whole numbers up to it are told apart as floats."""

Outcome = Literal["added", "changed", "removed", "unchanged"]
Vector = NDArray[np.float32]
Content = tuple[str, str, float]
"""Text, attributes as JSON and popularity of an item, as they are kept: equal when nothing changed."""


class CatalogueError(Exception):
    """A catalogue, or an edit of it, that is refused; the message is one line."""


class GoneError(CatalogueError):
    """The catalogue was removed, or replaced by another of its name."""


class OutdatedError(CatalogueError):
    """Another model made its vectors; the message has the command that makes them again."""


class BusyError(CatalogueError):
    """Others were writing all the time."""


class FullError(CatalogueError):
    """There was no room on the disk; nothing was changed."""


class EditError(CatalogueError):
    """What was to be put in cannot be kept; nothing was changed."""


class VectorsMissingError(CatalogueError):
    """Items whose text is new, by id, were given no vector; nothing was changed."""

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(f"{len(ids)} items have a new text and no vector")
        self.ids = ids


@dataclass(frozen=True, slots=True)
class Entry:
    item_id: str
    text: str
    attributes: Attributes = field(default_factory=dict)
    popularity: float = 0.0

    def content(self) -> Content:
        """Raises EditError."""
        values = [*self.attributes.values(), self.popularity]
        numbers = [value for value in values if not isinstance(value, str | bool)]
        if not all(
            abs(number) <= MOST_EXACT if isinstance(number, int) else math.isfinite(number) for number in numbers
        ):
            raise EditError(f"item {self.item_id!r}: a number in it is not finite, or whole and too large to be exact")
        floats = {
            name: value if isinstance(value, str | bool) else float(value) for name, value in self.attributes.items()
        }
        return self.text, json.dumps(floats, ensure_ascii=False, sort_keys=True), float(self.popularity)


@dataclass(frozen=True, slots=True)
class Edited:
    """What became of each entry, then of each id to remove; `version` and `count` are the catalogue's since."""

    outcomes: tuple[Outcome, ...]
    version: int
    count: int


def check_digest(name: str, found: str, wanted: str) -> None:
    """Raises OutdatedError."""
    if found != wanted:
        raise OutdatedError(
            f"catalogue {name}: its vectors were made by another model ({found[:12]}, this one is {wanted[:12]}); "
            f"heed catalogue rebuild {name}"
        )


def outcome_of(old: Content | None, new: Content) -> Outcome:
    return "added" if old is None else "unchanged" if old == new else "changed"
