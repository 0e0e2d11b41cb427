"""The time that a request waited in HAProxy counts against its deadline."""

from __future__ import annotations

import time

import pytest
from fastapi import Request

from service.cluster.ingress import ARRIVAL_HEADER
from service.errors import DeadlineExceeded
from service.http.arrival import waited_s
from service.http.hot_route import request_deadline_s
from service.settings import Settings, load_settings

SETTINGS = load_settings(request_timeout_s=10, gateway_queue_s=0.5, same_machine=True)


def request(*stamps: object, timeout_ms: int | None = None) -> Request:
    headers = [(ARRIVAL_HEADER.lower().encode(), str(stamp).encode()) for stamp in stamps]
    if timeout_ms is not None:
        headers.append((b"x-request-timeout-ms", str(timeout_ms).encode()))
    return Request({"type": "http", "headers": headers})


def stamp(seconds_ago: float) -> int:
    return round((time.time() - seconds_ago) * 1e6)


def remaining_s(request: Request, settings: Settings = SETTINGS) -> float:
    return request_deadline_s(request, settings) - time.monotonic()


def test_the_wait_is_taken_from_the_deadline() -> None:
    assert remaining_s(request(stamp(4))) == pytest.approx(remaining_s(request()) - 4, abs=0.1)
    assert remaining_s(request(stamp(4), timeout_ms=5000)) == pytest.approx(0.95, abs=0.1)


@pytest.mark.parametrize("timeout_ms", [1, 1000, 3999])
def test_a_request_whose_time_ran_out_in_the_queue_is_not_executed(timeout_ms: int) -> None:
    with pytest.raises(DeadlineExceeded):
        request_deadline_s(request(stamp(4), timeout_ms=timeout_ms), SETTINGS)


def test_a_stamp_that_cannot_be_true_is_ignored() -> None:
    for absurd in (stamp(-5), stamp(11), 1, 0, "", "1e15", "-5", "9" * 30, "\xff", f"{stamp(4)}, {stamp(4)}"):
        assert waited_s(request(absurd), SETTINGS) == 0, absurd
    assert waited_s(request(stamp(4), stamp(4)), SETTINGS) == 0
    assert waited_s(request(), SETTINGS) == 0
    assert waited_s(request(stamp(10)), SETTINGS) == pytest.approx(10, abs=0.1)


def test_a_stamp_counts_only_behind_haproxy_of_this_machine() -> None:
    elsewhere = load_settings(same_machine=False)
    assert waited_s(request(stamp(4)), elsewhere) == 0
    assert remaining_s(request(stamp(4)), elsewhere) == pytest.approx(remaining_s(request()), abs=0.1)
    assert not load_settings().same_machine
