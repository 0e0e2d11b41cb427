"""A server command with all its processes: their CPU time, memory and end.

Some servers start daemons that leave the command's group and outlive it. So this process adopts orphans, and every
process below it belongs to the running server. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from tests.bench.footprint.__main__ import pss_bytes

_SET_CHILD_SUBREAPER = 36  # of prctl(2)
_POLL_S = 0.1
_IDLE_S, _IDLE_CORES = 0.5, 0.4  # a tree that uses at most these cores for this time is at rest


class NotStartedError(Exception):
    """The command ended or was not ready in time. The message ends with its last output."""


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose parent ends."""
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


class Tree:
    """A command and its processes. Only one may exist at a time, because it claims all descendants of this process."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as file:
            self._root = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, ready: Callable[[], bool], seconds: float) -> float:
        """Return the seconds until `ready` is true. Raise NotStartedError if the command ends or time runs out."""
        started_s = time.monotonic()
        while not ready():
            if self._root.poll() is not None:
                raise NotStartedError(f"ended with {self._root.returncode}: {self._last_output()}")
            if time.monotonic() - started_s > seconds:
                raise NotStartedError(f"not ready after {seconds:.0f} s: {self._last_output()}")
            time.sleep(_POLL_S)
        return time.monotonic() - started_s

    def cpu_s(self) -> dict[int, float]:
        """Return the CPU seconds of each live process."""
        used = {}
        for process in _descendants():
            with contextlib.suppress(psutil.Error):
                used[process.pid] = sum(process.cpu_times()[:2])
        return used

    def pss_bytes(self) -> int:
        total = 0
        for process in _descendants():
            with contextlib.suppress(OSError):
                total += pss_bytes(process.pid)
        return total

    def wait_idle(self, seconds: float) -> None:
        """Wait until the server is idle. Many servers continue with requests whose callers have left."""
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            before_s = sum(self.cpu_s().values())
            time.sleep(_IDLE_S)
            if sum(self.cpu_s().values()) - before_s <= _IDLE_CORES * _IDLE_S:
                return

    def stop(self, seconds: float = 20.0) -> None:
        """Interrupt the command, then kill its remaining processes."""
        self._root.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._root.wait(seconds)
        # Repeat, because a dying parent may have started another process or left an orphan.
        while remaining := _descendants():
            for process in remaining:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(remaining, timeout=1)
        self._root.wait()

    def _last_output(self) -> str:
        lines = self._log.read_text(errors="replace").split("\n")
        return " | ".join(line.strip() for line in lines if line.strip())[-300:]


def _descendants() -> list[psutil.Process]:
    processes: list[psutil.Process] = psutil.Process().children(recursive=True)
    return processes
