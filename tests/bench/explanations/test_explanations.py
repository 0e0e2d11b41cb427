from __future__ import annotations

import pytest

from tests.bench.explanations.__main__ import Phase, Round, median_slowdown, successful, table, verdicts
from tests.support.local_service import Reply


def rounds(explaining: float) -> dict[Phase, list[Round]]:
    def make(*times: float) -> list[Round]:
        return [Round(time, 2 * time, 100.0, 0.0) for time in times]

    return {
        "never": make(10, 20, 40),
        "idle": make(10.1, 20.2, 40.4),
        "explaining": make(10 * explaining, 20, 40 * explaining),
    }


def test_phases_are_compared_within_a_round() -> None:
    assert median_slowdown([11, 40, 30], [10, 20, 30]) == pytest.approx(0.1)
    assert "| explaining | 41.60 |" not in table(rounds(1.04))
    assert "| idle | 20.20 | +1.0% | 40.4 | 100 | 0.0 |" in table(rounds(1.04))


def test_a_slowdown_over_the_limit_is_reported() -> None:
    assert [line.split(", ")[1].split()[0] for line in verdicts(rounds(1.04))] == ["within", "within"]
    assert [line.split(", ")[1].split()[0] for line in verdicts(rounds(1.06))] == ["within", "OVER"]


def test_refusals_are_ignored_and_failures_end_the_measurement() -> None:
    good, refused, bad = (Reply(status, {}, b"", 0.1) for status in (200, 429, 500))
    assert successful([good, refused, good]) == [good, good]
    for wrong in (bad, OSError("gone")):
        with pytest.raises(SystemExit, match="1 of 2 requests failed"):
            successful([good, wrong])
