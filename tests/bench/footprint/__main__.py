"""The footprint of the shipped service: seconds until ready, memory, processes and latency of a connection.

Measured with the sentiment model alone, then with more models. Prints a line per set of models, with the medians of
three interleaved starts. Run with `make bench-footprint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

from models.bundle import SHIPPED, SHIPPED_INTENT, SHIPPED_RECOMMEND
from tests.support.local_service import Service, free_port

STARTS, REQUESTS = 3, 200

# Variables that add models to the sentiment model, which `Service` starts alone by default.
MODELS: Mapping[str, Mapping[str, str]] = {
    "sentiment": {},
    "sentiment and intents": {"HEED_INTENT_BUNDLE": str(SHIPPED_INTENT)},
    "all three": {"HEED_INTENT_BUNDLE": str(SHIPPED_INTENT), "HEED_RECOMMEND_BUNDLE": str(SHIPPED_RECOMMEND)},
}


@dataclass(frozen=True, slots=True)
class Start:
    ready_s: float
    processes: int
    pss_bytes: int
    latency_s: float  # median, one connection


def main() -> None:
    starts = [{name: measure_start(environment) for name, environment in MODELS.items()} for _ in range(STARTS)]
    for name in MODELS:
        ready_s, processes, pss, latency_s = (
            median(getattr(start[name], field.name) for start in starts) for field in fields(Start)
        )
        print(
            f"{name}: ready after {ready_s:.1f} s, {processes:.0f} processes, "
            f"{pss / 1e9:.2f} GB of proportional memory, a connection: median {latency_s * 1000:.1f} ms"
        )


def measure_start(environment: Mapping[str, str]) -> Start:
    service = Service(SHIPPED, free_port(), environment=environment)
    times = [
        service.client.post({"inputs": "Shares of Acme plunge after profit warning"}).seconds for _ in range(REQUESTS)
    ]
    processes = service.processes()
    pss = sum(pss_bytes(process.pid) for process in processes)
    service.stop()
    return Start(service.seconds_to_ready, len(processes), pss, median(times))


def pss_bytes(pid: int) -> int:
    """Return the proportional set size of a process. A shared page is divided by the processes that share it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
