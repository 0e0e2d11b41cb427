"""User events as arrays: their types, and buckets of their age and position. This module knows only arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.catalogue.projections import ProjectionView

EVENT_TYPES: Final = ("view", "click", "cart", "purchase", "like", "other")
"""Types of events by number. A rating of at least NEUTRAL_RATING is a like. DISLIKE marks no interest at all."""

DISLIKE = -1
NEUTRAL_RATING = 3
"""The lowest rating, of 1 to 5, that counts as a like."""

MAX_EVENTS = 256
"""Events that a model reads: the newest of a history."""

AGE_BUCKETS, POSITION_BUCKETS = 18, 18
UNKNOWN_AGE = AGE_BUCKETS - 1

Array = NDArray[np.float32]


def age_bucket(days: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the age bucket of each event by its days before the newest event.

    Buckets double in width, from half an hour to years. A nan gives UNKNOWN_AGE.
    """
    buckets = np.floor(np.log2(np.maximum(days, 2.0**-7)) + 7)
    unknown = np.isnan(buckets)
    buckets[unknown] = UNKNOWN_AGE
    indices: NDArray[np.int64] = np.minimum(buckets, UNKNOWN_AGE - ~unknown).astype(np.int64)
    return indices


def position_bucket(events: int) -> NDArray[np.int64]:
    """Return a bucket (events,) of the number of later events, for each of `events` events, oldest first."""
    if events <= MAX_EVENTS:
        return _LONGEST_BUCKETS[MAX_EVENTS - events :]
    return _position_buckets(events)


def _position_buckets(events: int) -> NDArray[np.int64]:
    later = np.arange(events - 1, -1, -1)
    buckets: NDArray[np.int64] = np.minimum(np.floor(2 * np.log2(later + 1)), POSITION_BUCKETS - 1).astype(np.int64)
    return buckets


_LONGEST_BUCKETS = _position_buckets(MAX_EVENTS)


def event_types(kind: str, values: Array) -> NDArray[np.int64]:
    """Return the type of each event, where all events are of one kind, named as in EVENT_TYPES or "rating".

    `values` are ratings from 1 to 5, nan for other kinds. A low rating is "other" and no dislike. In data of ratings,
    users chose the item all the same.
    """
    if kind == "rating":
        return np.where(values < NEUTRAL_RATING, EVENT_TYPES.index("other"), EVENT_TYPES.index("like"))
    return np.full(len(values), EVENT_TYPES.index(kind))


@dataclass(frozen=True, slots=True)
class History:
    """A user's events, oldest first. All arrays have one entry for each event.

    `vectors` (events, width) are item vectors, plain or projected. `items` (events,) are integers, equal for the same
    item, and -1 for an item that cannot be a candidate. `kinds` (events,) are indices of EVENT_TYPES, or DISLIKE.
    `ages` (events,) are days before the newest event, nan where the time is unknown. `training_indices` (events,) are
    those of `Recommender.training_indices`, or None if the items are not looked up.
    """

    vectors: Array | ProjectionView
    items: NDArray[np.int64]
    kinds: NDArray[np.int64]
    ages: Array
    training_indices: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def select(self, mask: NDArray[np.bool_]) -> History:
        """Return the events for which `mask` (events,) is True."""
        if mask.all():
            return self
        training_indices = None if self.training_indices is None else self.training_indices[mask]
        return History(self.vectors[mask], self.items[mask], self.kinds[mask], self.ages[mask], training_indices)
