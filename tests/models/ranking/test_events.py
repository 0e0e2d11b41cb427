from __future__ import annotations

import numpy as np

from models.ranking.events import (
    AGE_BUCKETS,
    EVENT_TYPES,
    POSITION_BUCKETS,
    UNKNOWN_AGE,
    age_bucket,
    event_types,
    position_bucket,
)


def test_ages_and_positions_fall_into_buckets() -> None:
    assert age_bucket(np.asarray([np.nan]))[0] == UNKNOWN_AGE
    ages = age_bucket(np.asarray([0.0, 0.05, 1.0, 30.0, 365.0, 1e6]))
    assert (np.diff(ages) > 0).all()
    assert ages.max() < UNKNOWN_AGE < AGE_BUCKETS
    for events in (300, 50, 1):
        positions = position_bucket(events)
        assert len(positions) == events
        assert positions[-1] == 0
        assert (np.diff(positions) <= 0).all()
        assert positions.max() < POSITION_BUCKETS


def test_low_rating_is_not_a_like() -> None:
    kinds = event_types("rating", np.asarray([1.0, 3.0, 5.0], np.float32))
    assert [EVENT_TYPES[kind] for kind in kinds] == ["other", "like", "like"]
