"""The pipe that brings the log lines of all processes to the standard output of `heed serve`.

What a process has written is in the kernel, so it survives that process. The pipe is read every few milliseconds, and
not for each line, so a line costs its writer little. If the terminal stands still, the pipe fills, and the writers
count the lines that they could not write. This module does not know what is in a line.
"""

from __future__ import annotations

import fcntl
import os
import select
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from service.telemetry.logs import ONCE, PIPE

_CAPACITY_BYTES = 2**20  # what the kernel grants a user, and about 4,000 lines
_PAUSE_S = 0.02
_STOP_TIMEOUT_S = 2.0  # for a terminal that stands still
_MAX_KEYS = 10_000
_ONCE = ONCE.encode()


class LogPipe:
    """A pipe in a folder that exists, and the thread that copies its lines to a file descriptor."""

    def __init__(self, folder: Path, target: int) -> None:
        path = folder / PIPE
        os.mkfifo(path, 0o600)
        # Open for writing too, so that the pipe never ends, and exists for a process that starts later.
        self._pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):  # a smaller pipe works as well
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _CAPACITY_BYTES)
        self._target = target
        self._rest = b""
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._stopped = threading.Event()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._copy_until_stopped, name="log", daemon=True)

    def start(self) -> None:
        """Begin to copy. Lines that were written before wait in the pipe."""
        self._thread.start()

    def stop(self) -> None:
        """Copy what is in the pipe and end. Call this when no process writes any more."""
        self._stopped.set()
        if self._thread.ident is None:
            self._copy()
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join(_STOP_TIMEOUT_S)

    def _copy_until_stopped(self) -> None:
        while not self._stopped.is_set():
            select.select([self._pipe, self._wake], [], [])
            self._copy()
            self._stopped.wait(_PAUSE_S)
        self._copy()

    def _copy(self) -> None:
        """Copy all lines that are in the pipe now."""
        while content := self._read():
            lines, end, self._rest = (self._rest + content).rpartition(b"\n")
            if _ONCE in lines:
                lines = b"\n".join(line for line in map(self._first, lines.split(b"\n")) if line)
                end = b"\n" if lines else b""
            self._write(lines + end)

    def _read(self) -> bytes:
        try:
            return os.read(self._pipe, _CAPACITY_BYTES)
        except BlockingIOError:
            return b""

    def _first(self, line: bytes) -> bytes:
        """Return the line without its key, or nothing if another process has written it before."""
        if not line.startswith(_ONCE):
            return line
        _, key, line = line.split(_ONCE, 2)
        if key in self._seen:
            return b""
        self._seen[key] = None
        if len(self._seen) > _MAX_KEYS:
            self._seen.popitem(last=False)
        return line

    def _write(self, content: bytes) -> None:
        view = memoryview(content)
        try:
            while view:
                view = view[os.write(self._target, view) :]
        except OSError:  # the reader of our output has gone; the pipe is emptied nevertheless
            return
