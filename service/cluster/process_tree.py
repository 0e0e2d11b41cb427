"""Processes that end with their parent, however it ends. Linux only.

It knows nothing of Ray. It imports little, because HAProxy's launcher loads it at each reload.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(signal_number: signal.Signals) -> None:
    """Let the kernel send this process the signal when its parent ends, also after `exec`."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its parent, so that `end_descendants` finds it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_descendants() -> None:
    """Kill and reap all descendants. The next round catches a process that forks meanwhile."""
    while descendants := _descendants(os.getpid()):
        for process_id in descendants:
            try:
                os.kill(process_id, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value)


def _descendants(root: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    descendants: set[int] = set()
    frontier = [root]
    while frontier:
        next_children = children.get(frontier.pop(), [])
        descendants.update(next_children)
        frontier.extend(next_children)
    return descendants
