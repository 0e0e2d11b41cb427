"""The local cluster of `heed serve` as a tree of processes: what it inherits, when it is up, and that all of it ends.

The cluster lives in a session of its own, so that a Ctrl-C reaches only us and we decide what it means. Everything it
writes is in one private folder, removed at the end. Knows processes, files and ports; Ray itself is only in the child,
which runs `app.run_local`.
"""

from __future__ import annotations

import errno
import http.client
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from service.cluster import haproxy
from service.cluster.process_tree import adopt_orphans, die_with_parent, end_descendants
from service.settings import Settings

READY = "ready"  # the child makes this file when every replica has answered
REFUSED = "refused"  # and this one, with a line for the operator, when it will not start

_START_WITHIN_S = 300.0
_STOP_WITHIN_S = 25.0
_POLL_S = 0.1
_ADMIN = "admin.sock"  # Ray puts it into a folder named after the node
_LONGEST_TEMP = 12  # the paths of Ray's and HAProxy's sockets below it must fit into 107 bytes

# Variables of Ray and Serve 2.60.0. Few of them are documented; tests look for each of them in Ray.
_TUNING = {
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # a datagram and a parse per request; our own metrics say more
    # Also a request that a dying replica took with it, sent once more: asking for a prediction changes nothing.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "2",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",  # of a larger request not all is kept, so it is not sent again
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",  # 10 by default, long for those who queue
    # What Ray does by itself, whoever asks, more seldom: nobody waits for it.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_worker_niceness": "0",  # 15 by default: any neighbour would win the CPU
}
_FORCED = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sysconfig.get_path("scripts")) / "heed-haproxy"),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
}
_PLACES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": _ADMIN,
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": ".",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "TMPDIR": ".",
    "RAY_TMPDIR": ".",
}
"""Files and folders, below the folder of the cluster."""

# Fixed by default, so a second service on this machine would find them taken.
_PORTS = ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "DASHBOARD_METRIC_PORT", "AUTOSCALER_METRIC_PORT")
_NOT_INHERITED = {"RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"}  # of some other cluster
_MARGIN_S = 20  # after which HAProxy gives up on a request that should have been answered 504


class ClusterError(Exception):
    """The service cannot start, or ended by itself; the message is one line."""


def check_port_is_free(host: str, port: int) -> None:
    """Refuse, before anything is started, what would fail much later and far from here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            mend = "; choose another with --port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else ""
            raise ClusterError(f"cannot listen on {host}:{port}: {error.strerror or error}{mend}") from None


def check_folder(folder: Path) -> None:
    """Refuse a folder for a team's own files in which none could be kept."""
    reason = _unusable(folder)
    if reason:
        raise ClusterError(f"HEED_DATA_DIR={folder}: {reason}; name another folder, or none to do without")


def _unusable(folder: Path) -> str:
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if not there.is_dir():
            return f"{there} is no folder"
        with tempfile.TemporaryFile(dir=there):
            return ""
    except OSError as error:
        return f"it cannot be written to ({error.strerror or error})"


class Cluster:
    def __init__(self, settings: Settings) -> None:
        temp = tempfile.gettempdir()
        self._folder = Path(tempfile.mkdtemp(prefix="heed-", dir=temp if len(temp) <= _LONGEST_TEMP else "/tmp"))
        self.log = self._folder / "service.log"
        self._settings = settings.model_copy(update={"metrics_dir": self._folder / "metrics"})
        self._child: subprocess.Popen[bytes] | None = None
        self._failed = False

    def start(self) -> None:
        """Return when the service answers on its public port; raises ClusterError."""
        adopt_orphans()
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-c", f"from service.app import run_local; run_local({str(self._folder)!r})"],
                env=environment(self._settings, self._folder, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )
        deadline_s = time.monotonic() + _START_WITHIN_S
        while not self._is_ready():
            if self._child.poll() is not None or time.monotonic() > deadline_s:
                raise self._failure("the service did not start")
            time.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        if not (self._folder / READY).exists():
            return False
        routed = sum(haproxy.servers_up(admin) for admin in self._folder.glob(f"*/{_ADMIN}"))
        return routed == self._settings.replicas and _answers(self._settings)

    def wait(self) -> None:
        """Until the service ends by itself, which it should not: raises ClusterError."""
        assert self._child is not None
        self._child.wait()
        raise self._failure("the service ended by itself")

    def stop(self) -> None:
        """Let it finish what it has begun, then end every process of it. A second signal skips the first half."""
        try:
            if self._child is not None:
                self._child.terminate()
                self._child.wait(_STOP_WITHIN_S)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            pass
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            end_descendants()
            if not self._failed:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _failure(self, what: str) -> ClusterError:
        self._failed = True
        refused = self._folder / REFUSED
        reason = f": {refused.read_text(encoding='utf-8')}" if refused.exists() else ""
        return ClusterError(f"{what}{reason}; its log is kept in {self.log}")


def environment(settings: Settings, folder: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return what every process of the cluster inherits.

    Serve reads its switches at import, in controller, proxy and replica. Tuning that the operator has set wins; what
    keeps the cluster private and its files together does not yield.
    """
    server_s = str(math.ceil(settings.request_timeout_s) + _MARGIN_S)
    known = settings.model_dump(exclude=settings.to_measure)  # what is to be measured must not seem to be set
    return {
        **_TUNING,
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": server_s,
        **{name: value for name, value in inherited.items() if name not in _NOT_INHERITED},
        **_FORCED,
        **{name: str(folder / place) for name, place in _PLACES.items()},
        **{name: str(_free_port()) for name in _PORTS},
        # Behind loopback the second line: another user of this machine cannot talk to Ray without the token.
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        **{f"HEED_{name.upper()}": str(value) for name, value in known.items()},
    }


def _answers(settings: Settings) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    connection = http.client.HTTPConnection(host, settings.port, timeout=2)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
