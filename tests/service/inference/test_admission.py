from __future__ import annotations

import math

import pytest

from service.errors import Overloaded
from service.inference.admission import ThroughputEstimator, work_budget_s


def complete_batches(
    throughput: ThroughputEstimator, batches: int, tokens: int, seconds: float, start_s: float = 0.0
) -> float:
    """Complete batches one after another, with more work pending behind each, and return the time of the end."""
    throughput.enqueued(tokens * (batches + 1), start_s)
    for count in range(1, batches + 1):
        throughput.completed(tokens, start_s + count * seconds)
    throughput.dropped(tokens)
    return start_s + batches * seconds


def test_the_rate_is_tokens_per_second_of_work() -> None:
    throughput = ThroughputEstimator()
    end_s = complete_batches(throughput, 50, 100, 0.1)
    complete_batches(throughput, 50, 100, 0.1, end_s + 3600)  # an idle hour
    assert throughput.seconds(1000) == pytest.approx(1.0)


def test_batches_count_in_proportion_to_their_time() -> None:
    throughput = ThroughputEstimator()
    throughput.enqueued(10**9, 0.0)
    for count in range(200):
        throughput.completed(10, count * 0.1 + 0.0001)  # two batches together, and then none for a while
        throughput.completed(90, count * 0.1 + 0.1)
    assert throughput.seconds(1000) == pytest.approx(1.0, rel=0.1)


def test_the_rate_follows_a_change_of_speed_within_some_batches() -> None:
    throughput = ThroughputEstimator()
    end_s = complete_batches(throughput, 50, 100, 0.1)
    end_s = complete_batches(throughput, 20, 100, 0.5, end_s)
    assert throughput.seconds(1000) == pytest.approx(5.0, rel=0.2)
    complete_batches(throughput, 300, 100, 0.01, end_s)
    assert throughput.seconds(1000) == pytest.approx(0.1, rel=0.1)


def test_a_single_stall_changes_the_rate_little() -> None:
    throughput = ThroughputEstimator()
    end_s = complete_batches(throughput, 50, 100, 0.1)
    complete_batches(throughput, 1, 100, 60.0, end_s)
    assert throughput.seconds(1000) == pytest.approx(1.25, rel=0.01)


def test_a_lone_text_can_raise_the_rate_but_not_lower_it() -> None:
    throughput = ThroughputEstimator()
    end_s = complete_batches(throughput, 50, 1000, 0.1)
    for count in range(100):
        throughput.enqueued(10, end_s + count)
        throughput.completed(10, end_s + count + 0.1)
    assert throughput.seconds(1000) == pytest.approx(0.1)
    slow = ThroughputEstimator()
    complete_batches(slow, 50, 1, 0.5)
    for count in range(100):
        slow.enqueued(100, 100.0 + count)
        slow.completed(100, 100.0 + count + 0.1)
    assert slow.seconds(1000) == pytest.approx(1.0, rel=0.1)


def test_no_request_is_refused_before_the_first_measurement_or_while_nothing_is_pending() -> None:
    throughput = ThroughputEstimator()
    throughput.enqueued(10**6, 0.0)
    throughput.admit(10**6, 0.001)
    throughput.completed(10**6, 3600.0)
    throughput.admit(10**6, 0.001)


def test_a_request_behind_too_many_tokens_is_refused_with_the_time_to_retry() -> None:
    throughput = ThroughputEstimator()
    complete_batches(throughput, 50, 100, 0.1)
    throughput.enqueued(3000, 100.0)
    throughput.admit(1000, 6.0)
    throughput.admit(10**6, math.inf)
    with pytest.raises(Overloaded) as refused:
        throughput.admit(1000, 5.0)
    assert refused.value.headers == {"Retry-After": "3"}
    throughput.dropped(2000)
    throughput.admit(1000, 5.0)


def test_a_request_past_its_deadline_is_late_and_not_refused_as_overload() -> None:
    throughput = ThroughputEstimator()
    complete_batches(throughput, 50, 100, 0.1)
    throughput.enqueued(3000, 100.0)
    throughput.admit(1, -1.0)


@pytest.mark.parametrize(("remaining_s", "work_s"), [(10.0, 9.95), (0.1, 0.09), (0.0, 0.0), (math.inf, math.inf)])
def test_some_time_is_reserved_for_the_way_back(remaining_s: float, work_s: float) -> None:
    assert work_budget_s(remaining_s) == pytest.approx(work_s)
