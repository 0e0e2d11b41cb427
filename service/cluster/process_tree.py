"""Processes that end with their parent, however it ends. Linux only.

It knows nothing of Ray. It imports little, because HAProxy's launcher loads it at each reload.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import time
from collections.abc import Container, Iterable
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def die_with_parent(signal_number: signal.Signals) -> None:
    """Let the kernel send this process the signal when its parent ends, also after `exec`."""
    _prctl(_PR_SET_PDEATHSIG, signal_number)


def die_with(process_id: int) -> None:
    """Let this process be killed when another one ends, also after `exec`. A forked child waits for that.

    The signal of `die_with_parent` would come as well when a parent between the two ends.
    """
    own = os.pidfd_open(os.getpid())
    try:
        other = os.pidfd_open(process_id)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
        raise
    if os.fork() == 0:
        if other in select.select([own, other], [], [])[0]:
            signal.pidfd_send_signal(own, signal.SIGKILL)
        os._exit(0)
    os.close(own)
    os.close(other)


def adopt_orphans() -> None:
    """Become the parent of every descendant that loses its parent, so that `end_descendants` finds it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def find_descendants(names: Container[str]) -> dict[int, str]:
    """Return the descendants whose programs have these names, by id. The kernel cuts a name at 15 characters."""
    found = {}
    for process_id in _descendants(os.getpid()):
        with suppress(OSError):
            name = Path("/proc", str(process_id), "comm").read_text().rstrip("\n")
            if name in names:
                found[process_id] = name
    return found


def wait_for_any(process_ids: Iterable[int]) -> int:
    """Wait until one of the processes ends, and return its id."""
    handles: dict[int, int] = {}
    try:
        for process_id in process_ids:
            try:
                handles[os.pidfd_open(process_id)] = process_id
            except ProcessLookupError:
                return process_id
        ended, _, _ = select.select(handles, [], [])
        return handles[ended[0]]
    finally:
        for handle in handles:
            os.close(handle)


def reap_orphans(kept: Container[int]) -> None:
    """Reap the adopted processes that have ended, but not those whose ids are in `kept`: their owners wait for them."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    try:
        while (ended := os.waitid(os.P_ALL, 0, flags)) is not None and ended.si_pid not in kept:
            os.waitpid(ended.si_pid, 0)
    except ChildProcessError:
        return


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
