from __future__ import annotations

import math

import pytest

from service.errors import Overloaded
from service.inference.admission import ThroughputEstimator, work_budget_s


def worked(drain: ThroughputEstimator, batches: int, tokens: int, seconds: float, since_s: float = 0.0) -> float:
    """So many batches, one after the other, with more waiting behind each; returns when the last ended."""
    drain.enqueued(tokens * (batches + 1), since_s)
    for number in range(1, batches + 1):
        drain.completed(tokens, since_s + number * seconds)
    drain.dropped(tokens)
    return since_s + batches * seconds


def test_the_rate_is_tokens_over_the_time_there_was_work() -> None:
    drain = ThroughputEstimator()
    end_s = worked(drain, 50, 100, 0.1)
    worked(drain, 50, 100, 0.1, end_s + 3600)  # an idle hour
    assert drain.seconds(1000) == pytest.approx(1.0)


def test_short_and_long_batches_weigh_by_their_time() -> None:
    drain = ThroughputEstimator()
    drain.enqueued(10**9, 0.0)
    for number in range(200):
        drain.completed(10, number * 0.1 + 0.0001)  # two at once, and then none for a while
        drain.completed(90, number * 0.1 + 0.1)
    assert drain.seconds(1000) == pytest.approx(1.0, rel=0.1)


def test_what_got_slower_is_noticed_within_some_batches_and_what_got_faster_too() -> None:
    drain = ThroughputEstimator()
    end_s = worked(drain, 50, 100, 0.1)
    end_s = worked(drain, 20, 100, 0.5, end_s)
    assert drain.seconds(1000) == pytest.approx(5.0, rel=0.2)
    worked(drain, 300, 100, 0.01, end_s)
    assert drain.seconds(1000) == pytest.approx(0.1, rel=0.1)


def test_one_stall_says_little_of_what_comes_after_it() -> None:
    drain = ThroughputEstimator()
    end_s = worked(drain, 50, 100, 0.1)
    worked(drain, 1, 100, 60.0, end_s)
    assert drain.seconds(1000) == pytest.approx(1.25, rel=0.01)


def test_a_lone_text_can_raise_the_rate_and_not_lower_it() -> None:
    drain = ThroughputEstimator()
    end_s = worked(drain, 50, 1000, 0.1)
    for number in range(100):
        drain.enqueued(10, end_s + number)
        drain.completed(10, end_s + number + 0.1)
    assert drain.seconds(1000) == pytest.approx(0.1)
    slow = ThroughputEstimator()
    worked(slow, 50, 1, 0.5)
    for number in range(100):
        slow.enqueued(100, 100.0 + number)
        slow.completed(100, 100.0 + number + 0.1)
    assert slow.seconds(1000) == pytest.approx(1.0, rel=0.1)


def test_nobody_is_refused_before_anything_was_measured_or_while_nothing_is_ahead() -> None:
    drain = ThroughputEstimator()
    drain.enqueued(10**6, 0.0)
    drain.admit(10**6, 0.001)
    drain.completed(10**6, 3600.0)
    drain.admit(10**6, 0.001)


def test_who_comes_behind_too_much_is_refused_and_told_when_it_is_gone() -> None:
    drain = ThroughputEstimator()
    worked(drain, 50, 100, 0.1)
    drain.enqueued(3000, 100.0)
    drain.admit(1000, 6.0)
    drain.admit(10**6, math.inf)
    with pytest.raises(Overloaded) as refused:
        drain.admit(1000, 5.0)
    assert refused.value.headers == {"Retry-After": "3"}
    drain.dropped(2000)
    drain.admit(1000, 5.0)


def test_who_comes_past_its_own_deadline_is_late_and_not_one_too_many() -> None:
    drain = ThroughputEstimator()
    worked(drain, 50, 100, 0.1)
    drain.enqueued(3000, 100.0)
    drain.admit(1, -1.0)


@pytest.mark.parametrize(("left_s", "work_s"), [(10.0, 9.95), (0.1, 0.09), (0.0, 0.0), (math.inf, math.inf)])
def test_some_time_is_kept_for_the_way_back(left_s: float, work_s: float) -> None:
    assert work_budget_s(left_s) == pytest.approx(work_s)
