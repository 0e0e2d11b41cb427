"""The result of a load generator, and the closed loop by wrk, a C program that is light beside any server.

wrk counts a latency far above the mean again for each request that it delayed, which penalises servers that stall.
Independent of the contenders.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

MISSING = "bench-serve: wrk, the load generator, is not installed: apt-get install wrk"
_SCRIPT = Path(__file__).parent / "requests.lua"


@dataclass(frozen=True, slots=True)
class Load:
    """The result of a load. Counts are requests, latencies are of successful answers."""

    seconds: float
    answered: int  # successfully and in time
    refused: int  # with another status
    broken: int  # without an answer
    late: int  # after the deadline
    p50_ms: float
    p99_ms: float
    generator_cpu_s: float


class LoadError(Exception):
    """The load generator failed. The message is a single line."""


def wrk_version() -> str | None:
    """Return the version of wrk, or None if it is not installed."""
    if shutil.which("wrk") is None:
        return None
    return subprocess.run(["wrk", "--version"], capture_output=True, text=True).stdout.split("[")[0].strip()


def closed_loop(url: str, bodies: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Run a load over `connections`. Each sends its next request when the last one was answered. Raise LoadError."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\n".join(bodies) + b"\n")
        file.flush()
        options = ["-t1", f"-c{connections}", f"-d{round(seconds)}", "--timeout", "10s", "-s", str(_SCRIPT)]
        before_s = _children_cpu_s()
        process = subprocess.run(["wrk", *options, url, "--", file.name], capture_output=True, text=True)
    output = process.stdout.rpartition("\n{")[2]
    if process.returncode != 0 or not output:
        raise LoadError(f"wrk: {(process.stderr or process.stdout).strip()[-200:]}")
    counts = json.loads("{" + output)
    counts["answered"] -= counts["refused"]
    return Load(**counts, late=0, generator_cpu_s=_children_cpu_s() - before_s)


def percentile_ms(latencies_s: Sequence[float], percent: float) -> float:
    return float(np.percentile(latencies_s, percent)) * 1000 if latencies_s else float("nan")


def http_request(path: str, body: bytes, extra: str = "") -> bytes:
    """Return an HTTP request. `extra` holds further header lines with their line ends."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _children_cpu_s() -> float:
    """Return the CPU seconds of ended child processes. During a measurement, only load generators end."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
