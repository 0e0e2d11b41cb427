"""What the shipped service asks of a machine: seconds until ready, proportional memory, processes, latency alone.

Prints one line for each of three starts, as its users would start it. Run with `make bench-footprint`.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from models.bundle import SHIPPED
from tests.cluster.running import Service, free_port

STARTS, REQUESTS = 3, 200


def main() -> None:
    for _ in range(STARTS):
        service = Service(SHIPPED, free_port())
        times = [
            service.client.post({"inputs": "Shares of Acme plunge after profit warning"}).seconds
            for _ in range(REQUESTS)
        ]
        pss = sum(pss_bytes(process.pid) for process in service.processes())
        print(
            f"ready after {service.seconds_to_ready:.1f} s, {len(service.processes())} processes, "
            f"{pss / 1e9:.2f} GB of proportional memory, one connection: median {median(times) * 1000:.1f} ms",
            flush=True,
        )
        service.stop()


def pss_bytes(pid: int) -> int:
    """The process's memory, each shared page divided by the processes that share it."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


if __name__ == "__main__":
    main()
