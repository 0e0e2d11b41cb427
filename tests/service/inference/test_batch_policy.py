"""Which of the waiting texts go together."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from service.inference.batch_policy import BatchLimits, next_batch

LIMITS = BatchLimits(batch_tokens=64, batch_items=4, queue_tokens=1000)
unhurried = settings(deadline=None)  # how long one example takes depends on the machine
lengths = st.lists(st.integers(1, 64), min_size=1, max_size=60)


@unhurried
@given(lengths)
def test_no_batch_exceeds_the_budget_the_padding_or_the_number_of_items(waiting: list[int]) -> None:
    chosen = [waiting[position] for position in next_batch(waiting, LIMITS)]
    padded = max(chosen) * len(chosen)
    assert len(chosen) <= LIMITS.batch_items
    assert padded <= LIMITS.batch_tokens
    assert padded <= sum(chosen) * LIMITS.padding


@unhurried
@given(lengths)
def test_the_oldest_is_in_every_batch_so_that_nothing_starves(waiting: list[int]) -> None:
    assert next_batch(waiting, LIMITS)[0] == 0


@unhurried
@given(lengths)
def test_every_text_is_in_one_batch_exactly(waiting: list[int]) -> None:
    left, run = list(range(len(waiting))), []
    while left:
        batch = [left[position] for position in next_batch([waiting[one] for one in left], LIMITS)]
        run += batch
        left = [one for one in left if one not in batch]
    assert sorted(run) == list(range(len(waiting)))


def test_texts_of_near_length_go_together() -> None:
    assert next_batch([10, 60, 11, 30, 10, 9], BatchLimits(512, 16, 1000)) == [0, 2, 4, 5]


def test_the_nearest_in_length_goes_before_the_older() -> None:
    assert next_batch([20, 21, 19, 20], BatchLimits(512, 2, 1000)) == [0, 3]


def test_among_equals_the_older_goes_first() -> None:
    assert next_batch([8] * 10, LIMITS) == [0, 1, 2, 3]
