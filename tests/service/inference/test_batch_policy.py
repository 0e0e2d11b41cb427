"""The choice of waiting texts that run together."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from service.inference.batch_policy import BatchLimits, next_batch

LIMITS = BatchLimits(batch_tokens=64, batch_items=4, queue_tokens=1000)
without_deadline = settings(deadline=None)  # the time of an example depends on the machine
lengths = st.lists(st.integers(1, 64), min_size=1, max_size=60)


@without_deadline
@given(lengths)
def test_no_batch_exceeds_its_limits(waiting: list[int]) -> None:
    chosen = [waiting[position] for position in next_batch(waiting, LIMITS)]
    padded = max(chosen) * len(chosen)
    assert len(chosen) <= LIMITS.batch_items
    assert padded <= LIMITS.batch_tokens
    assert padded <= sum(chosen) * LIMITS.padding


@without_deadline
@given(lengths)
def test_the_oldest_text_is_in_every_batch(waiting: list[int]) -> None:
    assert next_batch(waiting, LIMITS)[0] == 0


@without_deadline
@given(lengths)
def test_every_text_is_in_exactly_one_batch(waiting: list[int]) -> None:
    remaining, done = list(range(len(waiting))), []
    while remaining:
        batch = [remaining[position] for position in next_batch([waiting[index] for index in remaining], LIMITS)]
        done += batch
        remaining = [index for index in remaining if index not in batch]
    assert sorted(done) == list(range(len(waiting)))


def test_texts_of_similar_length_run_together() -> None:
    assert next_batch([10, 60, 11, 30, 10, 9], BatchLimits(512, 16, 1000)) == [0, 2, 4, 5]


def test_the_nearest_length_has_precedence_over_age() -> None:
    assert next_batch([20, 21, 19, 20], BatchLimits(512, 2, 1000)) == [0, 3]


def test_older_texts_of_equal_length_run_first() -> None:
    assert next_batch([8] * 10, LIMITS) == [0, 1, 2, 3]
