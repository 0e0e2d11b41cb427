"""What users did, as arrays: kinds of events, how long ago and how many events ago each was. Knows arrays alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.catalogue.projections import ProjectionView

EVENT_TYPES: Final = ("view", "click", "cart", "purchase", "like", "other")
"""What an event says of an item, by number. A rating at or above neutral is a like; DISLIKE is no interest at all."""

DISLIKE = -1
NEUTRAL = 3
"""Of ratings from 1 to 5; below it an item was not liked."""

MAX_EVENTS = 256
"""The newest that are read."""

AGES, POSITION_BUCKETS = 18, 18
UNKNOWN_AGE = AGES - 1

Array = NDArray[np.float32]


def age_bucket(days: NDArray[np.floating]) -> NDArray[np.int64]:
    """Days before the newest event to buckets of doubling width, from half an hour to years; nan to UNKNOWN_AGE."""
    buckets = np.floor(np.log2(np.maximum(days, 2.0**-7)) + 7)
    unknown = np.isnan(buckets)
    buckets[unknown] = UNKNOWN_AGE
    found: NDArray[np.int64] = np.minimum(buckets, UNKNOWN_AGE - ~unknown).astype(np.int64)
    return found


def position_bucket(events: int) -> NDArray[np.int64]:
    """For each of so many events, oldest first, a bucket of how many came after it; (events,)."""
    if events <= MAX_EVENTS:
        return _PLACES[MAX_EVENTS - events :]
    return _position_buckets(events)


def _position_buckets(events: int) -> NDArray[np.int64]:
    after = np.arange(events - 1, -1, -1)
    buckets: NDArray[np.int64] = np.minimum(np.floor(2 * np.log2(after + 1)), POSITION_BUCKETS - 1).astype(np.int64)
    return buckets


_PLACES = _position_buckets(MAX_EVENTS)


def event_types(kind: str, values: Array) -> NDArray[np.int64]:
    """Of events that are all of one kind, by name; ratings of 1 to 5 (values, nan otherwise) are likes or others.

    As in the data of what people rate next, where a low rating is no dislike of what it stands for: they chose it.
    """
    if kind == "rating":
        return np.where(values < NEUTRAL, EVENT_TYPES.index("other"), EVENT_TYPES.index("like"))
    return np.full(len(values), EVENT_TYPES.index(kind))


@dataclass(frozen=True, slots=True)
class History:
    """A user's events, oldest first, all arrays of the same length.

    `vectors` (events, width) of the items, as they are or projected; `items` (events,) whole numbers, equal for the
    same item, -1 for one that no candidate can be; `kinds` (events,) numbers of KINDS or DISLIKE; `ages` (events,) days
    before the newest event, nan where no time was given; `trained` (events,) as `Recommender.numbers` gives them, None
    when it knows none.
    """

    vectors: Array | ProjectionView
    items: NDArray[np.int64]
    kinds: NDArray[np.int64]
    ages: Array
    training_indices: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def select(self, kept: NDArray[np.bool_]) -> History:
        """Its events for which `kept` (events,) is True."""
        if kept.all():
            return self
        trained = None if self.training_indices is None else self.training_indices[kept]
        return History(self.vectors[kept], self.items[kept], self.kinds[kept], self.ages[kept], trained)
