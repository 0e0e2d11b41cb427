"""What the tests of the load generator share: a load, and the check that no arrival is lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.bench.chaos.generator import servers
from tests.bench.chaos.generator.program import Load, run
from tests.bench.chaos.generator.results import Report
from tests.bench.chaos.generator.servers import serving

LOAD = Load(port=0, phases=[(50, 0.4)], path="/v1/sentiment", bodies=[b"{}"], give_up_s=20.0)


def check_sums(report: Report) -> None:
    """No arrival is lost or counted twice."""
    windows = report.windows
    assert report.total.settled == report.total.arrivals == sum(windows.arrivals)
    assert all(phase.summary.settled == phase.summary.arrivals for phase in report.phases)
    assert sum(phase.summary.arrivals for phase in report.phases) == report.total.arrivals
    sums = zip(windows.good, windows.refused, windows.other, strict=True)
    assert list(windows.arrivals) == [sum(counts) for counts in sums]
    assert sum(windows.good) == report.total.good


def measure(program: Path, answer: servers.Answer, load: Load = LOAD) -> Report:
    with serving(answer) as server:
        report = run(program, replace(load, port=server.port))
    check_sums(report)
    return report
