"""What the shipped service asks of a machine: seconds until ready, proportional memory, processes, latency alone.

With the model of sentiment alone, then with more models beside it; one line for each, the medians of three starts that
take turns. Run with `make bench-footprint`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median

from models.bundle import SHIPPED, SHIPPED_INTENT, SHIPPED_RECOMMEND
from tests.support.local_service import Service, free_port

STARTS, REQUESTS = 3, 200

# What stands beside the model of sentiment, which `Service` starts alone unless told otherwise.
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
    starts = [{name: start_with(more) for name, more in MODELS.items()} for _ in range(STARTS)]
    for name in MODELS:
        ready_s, processes, pss, latency_s = (
            median(getattr(one[name], field.name) for one in starts) for field in fields(Start)
        )
        print(
            f"{name}: ready after {ready_s:.1f} s, {processes:.0f} processes, "
            f"{pss / 1e9:.2f} GB of proportional memory, one connection: median {latency_s * 1000:.1f} ms"
        )


def start_with(more: Mapping[str, str]) -> Start:
    service = Service(SHIPPED, free_port(), environment=more)
    times = [
        service.client.post({"inputs": "Shares of Acme plunge after profit warning"}).seconds for _ in range(REQUESTS)
    ]
    processes = service.processes()
    pss = sum(pss_bytes(process.pid) for process in processes)
    service.stop()
    return Start(service.seconds_to_ready, len(processes), pss, median(times))


def pss_bytes(pid: int) -> int:
    """The process's memory, each shared page divided by the processes that share it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
