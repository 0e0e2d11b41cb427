"""What a generator found, and the closed loop by wrk: a C program, light beside any server, the same for all.

wrk counts a latency that is far above the mean once more for each request it kept from being sent, which leans against
servers that stall. Knows sockets and bodies, nothing of contenders.
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
    """Counts are requests. `late` are those whose deadline passed; latencies are of those answered well."""

    seconds: float
    answered: int  # well and in time
    refused: int  # with another status
    broken: int  # no answer
    late: int
    p50_ms: float
    p99_ms: float
    generator_cpu_s: float


class LoadError(Exception):
    """The generator did not work; the message is one line."""


def wrk_version() -> str | None:
    """None when it is not installed."""
    if shutil.which("wrk") is None:
        return None
    return subprocess.run(["wrk", "--version"], capture_output=True, text=True).stdout.split("[")[0].strip()


def closed_loop(url: str, bodies: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Ask over so many connections, each as soon as it was answered."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\n".join(bodies) + b"\n")
        file.flush()
        options = ["-t1", f"-c{connections}", f"-d{round(seconds)}", "--timeout", "10s", "-s", str(_SCRIPT)]
        before_s = _children_cpu_s()
        done = subprocess.run(["wrk", *options, url, "--", file.name], capture_output=True, text=True)
    found = done.stdout.rpartition("\n{")[2]
    if done.returncode != 0 or not found:
        raise LoadError(f"wrk: {(done.stderr or done.stdout).strip()[-200:]}")
    counts = json.loads("{" + found)
    counts["answered"] -= counts["refused"]
    return Load(**counts, late=0, generator_cpu_s=_children_cpu_s() - before_s)


def percentile_ms(latencies_s: Sequence[float], percent: float) -> float:
    return float(np.percentile(latencies_s, percent)) * 1000 if latencies_s else float("nan")


def http_request(path: str, body: bytes, extra: str = "") -> bytes:
    """`extra` are further header lines, each with its end."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _children_cpu_s() -> float:
    """Of children that ended; only generators end while one of them is measured."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
