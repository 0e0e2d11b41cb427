"""The guard that starts HAProxy again within a moment if it ends unexpectedly.

Serve notices an ended HAProxy only at a health check, after about 30 s. The guard, in the process behind `heed serve`,
waits for its end in the kernel. It starts HAProxy with the configuration that it had. Then it ends Serve's manager of
HAProxy, which cannot reload one that it has not started. The manager's successor takes over (`haproxy.take_over`).
"""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from service.cluster.haproxy import read_stats
from service.cluster.process_tree import reap_orphans

_POLL_S = 0.5  # between two looks at which process answers
_START_TIMEOUT_S = 5.0
_START_POLL_S = 0.02
_RETRY_S = 1.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProxyProcess:
    """A process of HAProxy: its id, that of its parent, its admin socket and its configuration."""

    process_id: int
    parent_id: int
    admin_socket: Path
    config: str


class ProxyGuard:
    """The guard of the HAProxys behind some admin sockets, which may come and go."""

    def __init__(
        self,
        find_sockets: Callable[[], Iterable[Path]],
        launcher: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        children: Iterable[int] = (),
    ) -> None:
        """Start HAProxy with `launcher`, writing to `log`. Of adopted processes, `children` have owners that wait."""
        self._find_sockets = find_sockets
        self._launcher = launcher
        self._environment = dict(environment)
        self._log = log
        self._children = frozenset(children)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._stopped = False
        self._guarded: dict[Path, ProxyProcess] = {}
        self._thread = threading.Thread(target=self._guard, name="proxy-guard", daemon=True)

    def start(self) -> None:
        """Begin to guard what answers now."""
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """End the guard, before HAProxy is ended on purpose."""
        self._stopped = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(_START_TIMEOUT_S)

    def _guard(self) -> None:
        while not self._stopped:
            reap_orphans(self._children)
            self._wait()
            self._look()

    def _look(self) -> None:
        """Find the processes that answer, and start those again that nothing has replaced."""
        for path in self._find_sockets():
            if (found := find_process(path)) is not None:
                self._guarded[path] = found
            elif path in self._guarded and not self._stopped and _is_refused(path):
                self._restart(self._guarded.pop(path))

    def _wait(self) -> None:
        """Wait until a guarded process ends, or for a while."""
        handles = []
        for proxy in self._guarded.values():
            with suppress(ProcessLookupError):
                handles.append(os.pidfd_open(proxy.process_id))
        try:
            all_run = len(handles) == len(self._guarded)
            select.select([*handles, self._wake], [], [], _POLL_S if all_run else _START_POLL_S)
        finally:
            for handle in handles:
                os.close(handle)

    def _restart(self, ended: ProxyProcess) -> None:
        started_s = time.monotonic()
        process_id = self._spawn(ended.config)
        while find_process(ended.admin_socket) is None:
            if _has_ended(process_id):
                _log.error("HAProxy ended and did not start again", process_id=ended.process_id)
                self._guarded[ended.admin_socket] = ended  # tried again
                select.select([self._wake], [], [], _RETRY_S)
                return
            if time.monotonic() - started_s > _START_TIMEOUT_S or self._stopped:
                break
            time.sleep(_START_POLL_S)
        _log.warning("HAProxy ended and was started again", seconds=round(time.monotonic() - started_s, 2))
        if ended.parent_id != os.getpid():
            with suppress(ProcessLookupError):
                os.kill(ended.parent_id, signal.SIGKILL)

    def _spawn(self, config: str) -> int:
        """Start HAProxy as a child that `reap_orphans` reaps, whenever it ends."""
        append = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        output = [(os.POSIX_SPAWN_OPEN, descriptor, str(self._log), append, 0o600) for descriptor in (1, 2)]
        command = [*self._launcher, "-db", "-f", config]
        return os.posix_spawn(command[0], command, self._environment, file_actions=output)


def _is_refused(admin_socket: Path) -> bool:
    """Return whether nobody listens at this socket any more."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(str(admin_socket)) == errno.ECONNREFUSED


def _has_ended(process_id: int) -> bool:
    return os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def find_process(admin_socket: Path) -> ProxyProcess | None:
    """Return the process that answers at this socket, or None."""
    stats = read_stats(admin_socket)
    if stats is None:
        return None
    folder = Path("/proc", str(stats.process_id))
    try:
        arguments = [os.fsdecode(argument) for argument in (folder / "cmdline").read_bytes().split(b"\0")]
        parent_id = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        return ProxyProcess(stats.process_id, parent_id, admin_socket, arguments[arguments.index("-f") + 1])
    except (OSError, ValueError):
        return None
