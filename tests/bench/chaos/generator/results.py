"""The report of the load generator.

Every arrival ends in exactly one way, so the counts of a summary add up to its arrivals. An arrival belongs to the
phase and the window in which it was due, whenever it ended.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TOLERANCE_S = 1e-6


@dataclass(frozen=True, slots=True)
class Times:
    """Percentiles in milliseconds, by nearest rank."""

    p50: float
    p90: float
    p99: float
    p99_9: float
    max: float


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """The Retry-After headers that were whole seconds."""

    count: int
    min: int
    max: int


@dataclass(frozen=True, slots=True)
class Status:
    """The complete answers of one HTTP status."""

    count: int
    problem_json: int  # with content type application/problem+json
    retry_after: RetryAfter | None


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The arrivals whose client left, by what it was doing then."""

    unsent: int  # the generator turned to it too late; the server is not at fault
    connecting: int
    waiting: int

    @property
    def total(self) -> int:
        return self.unsent + self.connecting + self.waiting


@dataclass(frozen=True, slots=True)
class Summary:
    """The fates of the arrivals of a run or of a phase."""

    start_s: float  # since the start of the run
    seconds: float
    arrivals: int
    good: int  # answered with 200 before the client left; `statuses` counts them too
    goodput_per_s: float
    statuses: Mapping[int, Status]
    gave_up: GaveUp
    not_sent: int  # as many connections were open as allowed
    errors: Mapping[str, int]  # of opening a connection, by the name of errno
    resets: int
    closed: int  # by the server, before the answer was complete
    stale: int  # those of `resets` and `closed` on a reused connection, before any answer; browsers send these again
    malformed: int
    ok_ms: Times | None  # latencies of the answers with 200, from when the arrival was due
    all_ms: Times | None  # latencies of all answers

    @property
    def settled(self) -> int:
        """The sum of all fates. It equals `arrivals`."""
        answered = sum(status.count for status in self.statuses.values())
        failed = sum(self.errors.values()) + self.resets + self.closed + self.malformed
        return answered + failed + self.gave_up.total + self.not_sent

    def count(self, *codes: int) -> int:
        """Return the number of answers with one of these statuses."""
        return sum(self.statuses[code].count for code in codes if code in self.statuses)


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of a run: its rate in arrivals per second, and what became of them."""

    rate: float
    summary: Summary


@dataclass(frozen=True, slots=True)
class Windows:
    """The time line. In each window, arrivals = good + refused + other."""

    seconds: float  # of one window
    arrivals: Sequence[int]
    good: Sequence[int]
    refused: Sequence[int]  # answered with 429 or 503
    other: Sequence[int]

    def recovery_s(self, start_s: float, end_s: float, share: float = 0.95, steady_s: float = 1.0) -> float | None:
        """Return how long after `start_s` the good answers were back, or None if they were not before `end_s`.

        They are back at the start of a window that has this share of good arrivals, as the next `steady_s` has.
        """
        steady = max(1, round(steady_s / self.seconds))
        first = -int((_TOLERANCE_S - start_s) // self.seconds)
        end = min(len(self.arrivals), int((end_s + _TOLERANCE_S) / self.seconds))
        for window in range(first, end - steady + 1):
            if self._is_good(window, window + 1, share) and self._is_good(window, window + steady, share):
                return max(0.0, window * self.seconds - start_s)
        return None

    def _is_good(self, first: int, end: int, share: float) -> bool:
        arrivals = sum(self.arrivals[first:end])
        return arrivals > 0 and sum(self.good[first:end]) >= share * arrivals


@dataclass(frozen=True, slots=True)
class Connections:
    """What became of connections, not of arrivals."""

    opened: int
    reused: int  # arrivals that took an idle one
    peak: int  # open at the same time
    closed_idle: int  # by the server
    unsolicited: int  # those with bytes that belong to no request


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a run."""

    started_s: float  # as time.monotonic() tells it
    give_up_s: float
    cpu_s: float  # of the generator
    lag_ms: Times | None  # of the generator, from when an arrival was due to when it turned to it
    connections: Connections
    total: Summary
    phases: Sequence[Phase]
    windows: Windows

    def recovery_s(self, phase: int, share: float = 0.95, steady_s: float = 1.0) -> float | None:
        """Return how long after the start of a phase the good answers were back. See Windows.recovery_s."""
        summary = self.phases[phase].summary
        return self.windows.recovery_s(summary.start_s, summary.start_s + summary.seconds, share, steady_s)


def parse_report(text: str) -> Report:
    """Return the report that the generator printed."""
    report = json.loads(text)
    return Report(
        started_s=report["started_s"],
        give_up_s=report["give_up_s"],
        cpu_s=report["cpu_s"],
        lag_ms=_times(report["lag_ms"]),
        connections=Connections(**report["connections"]),
        total=_summary(report["total"]),
        phases=tuple(Phase(phase.pop("rate"), _summary(phase)) for phase in report["phases"]),
        windows=Windows(**report["windows"]),
    )


def _summary(fields: dict[str, Any]) -> Summary:
    latencies = fields.pop("latency_ms")
    return Summary(
        statuses=dict(_statuses(fields.pop("statuses"))),
        gave_up=GaveUp(**fields.pop("gave_up")),
        errors={errno.errorcode.get(int(code), code): count for code, count in fields.pop("errors").items()},
        ok_ms=_times(latencies["ok"]),
        all_ms=_times(latencies["all"]),
        **fields,
    )


def _statuses(statuses: dict[str, dict[str, Any]]) -> Iterator[tuple[int, Status]]:
    for code, fields in statuses.items():
        retry_after = fields.pop("retry_after")
        yield int(code), Status(**fields, retry_after=RetryAfter(**retry_after) if retry_after else None)


def _times(fields: dict[str, float] | None) -> Times | None:
    return None if fields is None else Times(**fields)
