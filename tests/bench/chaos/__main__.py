"""`make bench-overload`: goodput above capacity, with clients that leave after a second. A round takes two minutes."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from models.bundle import SHIPPED
from tests.bench.chaos.generator.program import compile_program
from tests.bench.chaos.overload import FACTORS, Overload, measure_capacity, measure_overload
from tests.support.local_service import Service, free_port

_WARM_UP_S = 2.0
# The output of the service is not read, so a record per request would fill its pipe.
_ENVIRONMENT = {"HEED_ACCESS_LOG": "false"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-overload", description=__doc__)
    parser.add_argument("--factors", type=float, nargs="+", default=FACTORS, help="multiples of capacity")
    parser.add_argument("--rounds", type=int, default=3, help="how often to measure each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program(Path(folder))
        service = Service(SHIPPED.resolve(), free_port(), environment=_ENVIRONMENT)
        try:
            measure_capacity(service.port, _WARM_UP_S)
            rounds = [measure_round(program, service.port, arguments.factors) for _ in range(arguments.rounds)]
        finally:
            service.stop()
    print(render(arguments.factors, rounds))


def measure_round(program: Path, port: int, factors: Sequence[float]) -> list[Overload]:
    """Measure capacity, and then each multiple of it."""
    capacity = measure_capacity(port)
    print(f"capacity {capacity:.0f} requests a second", flush=True)
    return [measure_overload(program, port, capacity, factor) for factor in factors]


def render(factors: Sequence[float], rounds: Sequence[Sequence[Overload]]) -> str:
    """Return a table of medians over the rounds."""
    lines = ["| arrivals / capacity | goodput / capacity | refused | p99 of light requests | recovery |"]
    lines.append("|--:|--:|--:|--:|--:|")
    for factor, measured in zip(factors, zip(*rounds, strict=True), strict=True):
        goodput, refused, light_ms = (
            statistics.median(values)
            for values in zip(*((each.goodput, each.refused, each.light_p99_ms) for each in measured), strict=True)
        )
        recovery_s = statistics.median(
            [float("inf") if each.recovery_s is None else each.recovery_s for each in measured]
        )
        lines.append(f"| {factor:g} | {goodput:.2f} | {refused:.0%} | {light_ms:.0f} ms | {recovery_s:.1f} s |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
