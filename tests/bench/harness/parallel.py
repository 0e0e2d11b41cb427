"""Processes that start measuring together: each loads, reports that it is ready, and waits for the common start."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence


def run_together(
    command: Sequence[str], processes: int, environment: Mapping[str, str] | None = None
) -> list[dict[str, float]]:
    """Return the results of the processes. Each calls `wait_for_start`, then prints its result as a line of JSON."""
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        for _ in range(processes)
    ]
    for process in started:
        _read(process)  # loaded and warm
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    results = [_read(process) for process in started]
    for process in started:
        process.wait()
    return results


def wait_for_start() -> None:
    """Report that this process is ready, and return when all processes are."""
    print("{}", flush=True)
    sys.stdin.read()  # closed when all processes are ready


def _read(process: subprocess.Popen[bytes]) -> dict[str, float]:
    assert process.stdout is not None
    content: dict[str, float] = json.loads(process.stdout.readline())
    return content
