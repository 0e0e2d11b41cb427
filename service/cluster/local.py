"""The local cluster of `heed serve` as a tree of processes: its environment, its readiness and its end.

The cluster runs in a separate session, so that a Ctrl-C reaches only us and we decide what it means. It writes all its
files into one private folder, which is removed at the end. This module knows processes, files and ports. Only the
child, which runs `app.run_local`, imports Ray.
"""

from __future__ import annotations

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
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from service.cluster import haproxy
from service.cluster.ingress import NOT_READY_STAGE, REFUSING_STAGE
from service.cluster.log_pipe import LogPipe
from service.cluster.preflight import ClusterError
from service.cluster.process_tree import (
    adopt_orphans,
    die_with_parent,
    end_descendants,
    find_descendants,
    wait_for_any,
)
from service.cluster.proxy_guard import ProxyGuard
from service.cluster.proxy_watch import ProxyWatch
from service.settings import Settings
from service.telemetry.metrics import Metrics

READY = "ready"
"""Name of the file that the child creates when every replica has answered."""

REFUSED = "refused"
"""Name of the file, with one line for the operator, that the child creates when it refuses to start."""

_START_TIMEOUT_S = 300.0
_STOP_TIMEOUT_S = 25.0
_POLL_S = 0.1
_DRAIN_POLL_S = 0.05
_LEAVE_S = 0.2  # for clients to use their connections once more, and so to learn that these close
_STANDARD_OUTPUT = 1
_ADMIN_SOCKET = "admin.sock"  # Ray puts it into a folder named after the node
_MAX_TEMP_CHARS = 12  # the paths of Ray's and HAProxy's sockets below it must fit into 107 bytes

_CONNECTIONS = "RAY_SERVE_HAPROXY_MAXCONN"
_LAUNCHER = "RAY_SERVE_HAPROXY_BINARY_PATH"

_NEEDED = {"raylet": "Ray's raylet", "gcs_server": "Ray's GCS"}
"""Programs of the cluster without which it cannot go on, by the names of their processes."""

# Variables of Ray and Serve 2.60.0. Few of them are documented. Tests look for each of them in Ray.
_TUNING = {
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    _CONNECTIONS: "4096",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # costs a datagram and a parse per request, and our metrics say more
    # Includes requests that died with their replica. Repeating one is safe, because a prediction changes nothing.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_RETRIES": "2",
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",  # HAProxy cannot repeat a request above this size
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "2s",
    "RAY_SERVE_HAPROXY_HEALTH_CHECK_FALL": "3",  # a slow answer to one or two checks is load and no fault
    # A gateway that refuses one connection is dead: load cannot do that, because it never has many connections.
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "30",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",  # 10 by default, too long for requests that queue
    # Periodic work of Ray that no request waits for, made less frequent.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.25",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "5000",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_worker_niceness": "0",  # 15 by default, so that any other process would win the CPU
}
_FORCED = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    _LAUNCHER: str(Path(sysconfig.get_path("scripts")) / "heed-haproxy"),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
}
_PATHS = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": _ADMIN_SOCKET,
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": ".",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
    "TMPDIR": ".",
    "RAY_TMPDIR": ".",
}
"""Files and folders, relative to the folder of the cluster."""

# Fixed by default, so a second service on this machine would find the ports in use.
_PORTS = ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "DASHBOARD_METRIC_PORT", "AUTOSCALER_METRIC_PORT")
_NOT_INHERITED = {"RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH"}  # they belong to another cluster
_SERVER_TIMEOUT_MARGIN_S = 20  # after a request should have been answered 504, HAProxy gives up on it


class Cluster:
    """The processes of one service on this machine."""

    def __init__(self, settings: Settings) -> None:
        temp = tempfile.gettempdir()
        self._folder = Path(tempfile.mkdtemp(prefix="heed-", dir=temp if len(temp) <= _MAX_TEMP_CHARS else "/tmp"))
        self.log = self._folder / "service.log"
        self.settings = settings.model_copy(update={"metrics_dir": self._folder / "metrics", "same_machine": True})
        self.settings.metrics_dir.mkdir(mode=0o700)
        self._pipe = LogPipe(self.settings.metrics_dir, _STANDARD_OUTPUT)
        self._watch: ProxyWatch | None = None
        self._guard: ProxyGuard | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._failed = False

    def start(self) -> None:
        """Start the cluster and return when the service answers on its public port. Raises ClusterError."""
        adopt_orphans()
        environment = build_environment(self.settings, self._folder, os.environ)
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-c", f"from service.app import run_local; run_local({str(self._folder)!r})"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=partial(die_with_parent, signal.SIGTERM),
            )
        self._pipe.start()  # not before the fork, which is safest without threads
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while not self._is_ready():
            if self._child.poll() is not None or time.monotonic() > deadline_s:
                raise self._failure("the service did not start")
            time.sleep(_POLL_S)
        # Not before the child has got its environment, which this changes.
        metrics = Metrics(self.settings.metrics_dir)
        self._watch = ProxyWatch(self._admin_sockets, self.settings.replicas, metrics)
        self._watch.start()
        launcher = environment[_LAUNCHER]
        self._guard = ProxyGuard(self._admin_sockets, [launcher], environment, self.log, [self._child.pid])
        self._guard.start()

    def _admin_sockets(self) -> list[Path]:
        return list(self._folder.glob(f"*/{_ADMIN_SOCKET}"))

    def _is_ready(self) -> bool:
        if not (self._folder / READY).exists():
            return False
        live = sum(haproxy.count_live_servers(path) for path in self._admin_sockets())
        return live == self.settings.replicas and _is_answering(self.settings)

    def wait(self) -> None:
        """Wait until the service ends unexpectedly, or a process that it needs, then raise ClusterError."""
        assert self._child is not None
        # Without its raylet, replicas that die are not replaced. Ray itself gives up after minutes, or not at all.
        needed = find_descendants(_NEEDED)
        ended = needed.get(wait_for_any([self._child.pid, *needed]), "the service")
        raise self._failure(f"{_NEEDED.get(ended, ended)} ended unexpectedly")

    def stop(self) -> None:
        """Let the service finish its requests, then end all its processes. A second signal skips the first step."""
        try:
            if self._guard is not None:
                self._guard.stop()
                if not self._failed:
                    self._drain()
            if self._watch is not None:
                self._watch.stop()
            if self._child is not None:
                self._child.terminate()
                self._child.wait(_STOP_TIMEOUT_S)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            pass
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            end_descendants()
            self._pipe.stop()
            if not self._failed:
                shutil.rmtree(self._folder, ignore_errors=True)

    def _drain(self) -> None:
        """Say that the service is not ready, then answer what is under way and refuse what comes.

        Requests end by their deadlines at the latest.
        """
        admin_sockets = self._admin_sockets()
        for path in admin_sockets:
            haproxy.set_stopping(path, NOT_READY_STAGE)
        time.sleep(self.settings.stop_delay_s)
        for path in admin_sockets:
            haproxy.set_stopping(path, REFUSING_STAGE)
        time.sleep(_LEAVE_S)
        deadline_s = time.monotonic() + self.settings.request_timeout_s + self.settings.gateway_queue_s
        while time.monotonic() < deadline_s and any(self._requests()):
            time.sleep(_DRAIN_POLL_S)
        for path in admin_sockets:
            if (stats := haproxy.read_stats(path)) is not None:
                os.kill(stats.process_id, signal.SIGUSR1)  # it closes its port and ends with its last connection
        time.sleep(_LEAVE_S)

    def _requests(self) -> Iterator[int]:
        for path in self._admin_sockets():
            if (stats := haproxy.read_stats(path)) is not None:
                yield stats.requests

    def _failure(self, event: str) -> ClusterError:
        self._failed = True
        refusal = self._folder / REFUSED
        reason = f": {refusal.read_text(encoding='utf-8')}" if refusal.exists() else ""
        return ClusterError(f"{event}{reason}; see its log in {self.log}")


def max_connections(inherited: Mapping[str, str] = os.environ) -> int:
    """Return the connections of clients that HAProxy holds at once."""
    value = inherited.get(_CONNECTIONS, "")
    return int(value if value.isdecimal() else _TUNING[_CONNECTIONS])


def build_environment(settings: Settings, folder: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of every process of the cluster.

    Serve reads its switches at import, in the controller, the proxy and the replicas. The operator's variables override
    our tuning, but not those that keep the cluster private and its files together.
    """
    server_timeout_s = str(math.ceil(settings.request_timeout_s) + _SERVER_TIMEOUT_MARGIN_S)
    values = settings.model_dump(exclude=settings.to_measure)  # a setting to measure must stay unset
    return {
        **_TUNING,
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": server_timeout_s,
        **{name: value for name, value in inherited.items() if name not in _NOT_INHERITED},
        **_FORCED,
        **{name: str(folder / path) for name, path in _PATHS.items()},
        **{name: str(_free_port()) for name in _PORTS},
        # Loopback alone admits every user of this machine. Without the token, they cannot talk to Ray.
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        haproxy.ROOT_VARIABLE: str(os.getpid()),
        **{f"HEED_{name.upper()}": str(value) for name, value in values.items()},
    }


def _is_answering(settings: Settings) -> bool:
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
