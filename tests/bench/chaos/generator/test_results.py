"""Tests of what is computed from the reports of the load generator."""

from __future__ import annotations

import pytest

from tests.bench.chaos.generator.results import Windows


@pytest.mark.parametrize(
    ("good", "start_s", "recovery_s"),
    [
        ([10] * 8, 0.0, 0.0),
        ([0, 0, 10, 10, 10, 10, 10, 10], 0.0, 0.2),
        ([0, 0, 10, 10, 10, 10, 10, 10], 0.1, 0.1),
        ([0, 10, 0, 10, 10, 10, 10, 10], 0.0, 0.3),
        ([0, 0, 0, 9, 10, 10, 10, 10], 0.05, 0.35),
        ([0, 0, 0, 0, 0, 0, 10, 10], 0.0, None),
        ([10, 10, 10, 0, 0, 0, 0, 0], 0.3, None),
    ],
)
def test_recovery_lasts(good: list[int], start_s: float, recovery_s: float | None) -> None:
    windows = Windows(0.1, [10] * 8, good, [0] * 8, [10 - count for count in good])
    result = windows.recovery_s(start_s, 0.8, steady_s=0.3)
    assert result == (None if recovery_s is None else pytest.approx(recovery_s))
