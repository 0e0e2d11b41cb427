"""Logs of the service: one record per line, written at once, so that nothing is lost when a process is killed.

Below `heed serve`, all processes write to its pipe, and it copies the lines to its standard output. In a cluster of
their own, they write to standard error, past the buffers of Serve. Writing never waits: lines that a full pipe does not
take are counted. The service logs only its own words, types and numbers, never a caller's text.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import structlog

from service.errors import describe_fault
from service.telemetry.records import LogFormat, render

PIPE = "log.pipe"
"""Name of the pipe of `heed serve` in the folder that its processes share."""

ONCE = "\x1e"
"""Surrounds the key of a line that several processes write, and `heed serve` shows once. No record can contain it."""

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that this task works for, or an empty string."""

_STANDARD_ERROR = 2
_log = structlog.get_logger(__name__)


class LineWriter:
    """Writes whole lines to a file descriptor, without a buffer and without waiting."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.is_pipe_of_serve = descriptor != _STANDARD_ERROR
        self.dropped = 0

    def write(self, line: bytes) -> bool:
        """Write the line and return whether that was possible."""
        try:
            os.write(self._descriptor, line)
        except OSError:  # a full pipe, a full disk or a closed terminal must not disturb a request
            self.dropped += 1
            return False
        return True

    def take_dropped(self) -> int:
        """Return the number of lines that were not written, and start again from 0."""
        dropped, self.dropped = self.dropped, 0
        return dropped


class LogOutput:
    """The log of this process: what every record begins with, its level, its form and where it goes."""

    def __init__(self, process: str, level: str, form: LogFormat, folder: Path | None) -> None:
        pipe = None if folder is None else _open_pipe(folder / PIPE)
        self.writer = LineWriter(_STANDARD_ERROR if pipe is None else pipe)
        self.form = form
        self.level = logging.getLevelNamesMapping()[level.upper()]
        self.origin = {"process": process, "pid": os.getpid()}

    def write_record(self, _: Any, level: str, fields: MutableMapping[str, Any]) -> str:
        """Write a record of structlog, as the last of its processors."""
        once = fields.pop("once", None)
        record = {"time": timestamp(), "level": level, "event": fields.pop("event"), **self.origin}
        if request_id := REQUEST_ID.get():
            record["request_id"] = request_id
        line = render({**record, **fields}, self.form)
        if once is not None and self.writer.is_pipe_of_serve:
            key = hashlib.blake2s(repr(once).encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()
            line = f"{ONCE}{key}{ONCE}".encode() + line
        self.write(line)
        raise structlog.DropEvent

    def write(self, line: bytes) -> None:
        """Write a line, and before it the number of lines that could not be written."""
        if self.writer.dropped:
            lost = {"time": timestamp(), "level": "error", "event": "log lines lost", **self.origin}
            dropped = self.writer.take_dropped()
            if not self.writer.write(render({**lost, "lines": dropped}, self.form)):
                self.writer.dropped += dropped
                return
        self.writer.write(line)


def configure(process: str, level: str, form: LogFormat = "console", folder: Path | None = None) -> LogOutput:
    """Log the events of this process, which is of a kind such as "gateway". Call this once per process.

    `folder` is the one that the processes of a service share. The faults of threads are logged too.
    """
    output = LogOutput(process, level, form, folder)
    structlog.configure(
        processors=[output.write_record],
        wrapper_class=structlog.make_filtering_bound_logger(output.level),
        logger_factory=structlog.ReturnLoggerFactory(),
    )
    threading.excepthook = _log_thread_fault
    return output


@contextmanager
def log_failed_start(process: str) -> Iterator[None]:
    """Log the fault that ends the start of a process, with its message: no request has come yet that it could quote."""
    try:
        yield
    except Exception as error:
        _log.critical(f"{process} cannot start", reason=str(error), **describe_fault(error))
        raise


def log_loop_faults() -> None:
    """Log the faults of tasks that nobody awaits in the running event loop, without the texts they may quote."""
    loop = asyncio.get_running_loop()
    previous = loop.get_exception_handler()

    def log_fault(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        _log.error("background task failed", **({} if error is None else describe_fault(error)))
        if previous is not None:
            previous(loop, context)

    loop.set_exception_handler(log_fault)


def silence() -> None:
    """Log nothing, in a command whose checks are repeated and logged by the service that it starts."""
    structlog.configure(processors=[_drop], logger_factory=structlog.ReturnLoggerFactory())


def timestamp() -> str:
    """Return the time in UTC, with milliseconds."""
    now_s = time.time()
    return f"{_whole_seconds(int(now_s))}.{int(now_s * 1000) % 1000:03d}Z"


@lru_cache(1)
def _whole_seconds(now_s: int) -> str:
    """Return the time without its end. It is cached because formatting it would be half the cost of a line."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))


def _drop(*_: object) -> NoReturn:
    raise structlog.DropEvent


def _open_pipe(path: Path) -> int | None:
    """Return the pipe of `heed serve`, opened for writing without waiting, or None if there is none to read it."""
    try:
        if not stat.S_ISFIFO(path.stat().st_mode):
            return None
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None


def _log_thread_fault(fault: threading.ExceptHookArgs) -> None:
    if fault.exc_value is not None and not isinstance(fault.exc_value, SystemExit):
        _log.critical("thread ended", thread=fault.thread and fault.thread.name, **describe_fault(fault.exc_value))
