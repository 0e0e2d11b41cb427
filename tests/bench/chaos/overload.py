"""Overload: what an open-loop load above capacity still gets answered in time, and how long recovery takes.

Capacity is measured first, by clients that wait for their answers. Then arrivals come at multiples of it, whether or
not anything is answered, and each client leaves after a second. Goodput is what it got with 200 by then.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.chaos.generator.program import Load, run
from tests.support.local_service import Client, load

CLIENTS = 64
FACTORS = (1.0, 1.5, 2.0, 3.0, 10.0)
BURST_FACTOR, BURST_S = 10.0, 5.0
SECONDS, CALM_S, CALM_SHARE = 8.0, 6.0, 0.5
_PROBE_S = 0.2
_NOUNS = ("profit", "revenue", "churn", "costs", "orders", "complaints", "debt", "margin")


@dataclass(frozen=True, slots=True)
class Overload:
    """The goodput at a multiple of capacity, as a share of it, and the times of light requests meanwhile."""

    factor: float
    goodput: float
    refused: float  # share of the arrivals
    light_p99_ms: float
    recovery_s: float | None


def bodies(count: int = 997) -> list[bytes]:
    """Return requests that differ, so that no cache answers them."""
    texts = (f"{_NOUNS[n % 8]} of unit {n} rose by {n % 71}.{n % 10} percent in week {n % 52}" for n in range(count))
    return [f'{{"inputs": "{text}"}}'.encode() for text in texts]


def measure_capacity(port: int, seconds: float = SECONDS) -> float:
    """Return the answers per second to clients that wait for them."""
    with load(
        port, CLIENTS, lambda index: {"inputs": f"{_NOUNS[index % 8]} of shop {index} fell by {index % 90}%"}
    ) as done:
        time.sleep(1)
        before = len(done)
        time.sleep(seconds)
        return (len(done) - before) / seconds


def measure_overload(program: Path, port: int, capacity: float, factor: float) -> Overload:
    """Send `factor` times the capacity, and ask for health meanwhile."""
    seconds = BURST_S if factor >= BURST_FACTOR else SECONDS
    calm = (capacity * CALM_SHARE, CALM_S)
    plan = Load(port, [(capacity * factor, seconds), calm], "/v1/sentiment", bodies())
    with light_requests(port) as times_s:
        report = run(program, plan)
    phase = report.phases[0].summary
    return Overload(
        factor,
        phase.goodput_per_s / capacity,
        phase.count(429, 503) / phase.arrivals,
        1000 * statistics.quantiles(times_s, n=100)[98],
        report.recovery_s(1),
    )


@contextmanager
def light_requests(port: int) -> Iterator[Sequence[float]]:
    """Ask for health and metrics in turn, and collect the seconds that each answer took."""
    times_s: list[float] = []
    stopped = threading.Event()

    def ask() -> None:
        with Client(port, 60) as client:
            while not stopped.wait(_PROBE_S):
                for path in ("/readyz", "/metrics"):
                    started_s = time.monotonic()
                    client.get(path)
                    times_s.append(time.monotonic() - started_s)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield times_s
    finally:
        stopped.set()
        thread.join()
