"""HAProxy with the configuration of the service, in front of small servers that stand for gateways."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from service.cluster import haproxy
from service.cluster.ingress import Ingress
from tests.support.local_service import free_port

WRITTEN = """global
    log 127.0.0.1:514 local0 info
    stats socket /run/admin.sock mode 666 level admin expose-fd listeners
    maxconn 4096
    nbthread 1
    tune.bufsize 131072
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option abortonclose
    option redispatch 1
    retry-on conn-failure empty-response
    balance leastconn
    errorfile 503 /run/500.http
frontend prometheus
    bind :9101
    mode http

frontend http_frontend
    bind 127.0.0.1:8000
    acl healthcheck path -i /-/healthz
    acl backend_replicas_server_up nbsrv(replicas) ge 1
    http-request return status 200 content-type text/plain string "success" if healthcheck backend_replicas_server_up
    http-request return status 503 content-type text/plain string "Service Unavailable" if healthcheck
    acl is_replicas path_beg /
    use_backend replicas if is_replicas
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain string "no such path"
backend replicas
    option httpchk GET /-/healthz
    http-check expect status 200
    default-server fastinter 100ms downinter 100ms fall 3 rise 1 inter 200ms check
    server one 127.0.0.1:30000 check observe layer4 error-limit 1 on-error mark-down
    server two 127.0.0.1:30001 check observe layer4 error-limit 1 on-error mark-down
    server last 127.0.0.1:30002 check backup
listen stats
  bind *:8404
  stats enable
"""
"""A configuration of the kind that Serve writes, for two replicas and Serve's proxy as the last resort."""


class Replica(ThreadingHTTPServer):
    """A server that answers with its name: paths with /slow after a release, /503 as unready, POST until it is dying.

    `seen` has the paths and headers of all requests but health checks, and `in_hand` counts those under way.
    """

    daemon_threads = True

    def __init__(self, name: str) -> None:
        replica = self
        self.released, self.entered, self.dying = threading.Event(), threading.Event(), threading.Event()
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.in_hand = self.most_in_hand = 0
        self._lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if self.path == "/-/healthz":
                    self.answer(200)
                    return
                headers = {key.lower(): ", ".join(self.headers.get_all(key, [])) for key in self.headers}
                with replica.counted(self.path, headers):
                    if "/slow" in self.path:
                        replica.entered.set()
                        replica.released.wait(60)
                self.answer(503 if self.path == "/503" else 200)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    while self.rfile.readline().strip() != b"0":
                        self.rfile.readline()
                    self.rfile.readline()
                if replica.dying.is_set():
                    self.close_connection = True
                else:
                    self.do_GET()

            def answer(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(name)))
                self.end_headers()
                self.wfile.write(name.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that went away."""

    @contextmanager
    def counted(self, path: str, headers: dict[str, str]) -> Iterator[None]:
        with self._lock:
            self.seen.append((path, headers))
            self.in_hand += 1
            self.most_in_hand = max(self.most_in_hand, self.in_hand)
        try:
            yield
        finally:
            with self._lock:
                self.in_hand -= 1

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()


@contextmanager
def balanced(folder: Path, replicas: list[Replica], ingress: Ingress | None = None) -> Iterator[int]:
    """Run an HAProxy in front of the replicas, and yield its port. A third replica stands for Serve's proxy."""
    port, config = free_port(), WRITTEN
    for written, replica in zip((30000, 30001, 30002), replicas, strict=False):
        config = config.replace(f":{written} ", f":{replica.server_port} ")
    hardened = haproxy.harden_config(config, None, ingress)
    with running(folder, hardened.replace("/run/", f"{folder}/").replace(":8000", f":{port}"), port):
        yield port


@contextmanager
def running(folder: Path, config: str, port: int) -> Iterator[None]:
    """Run an HAProxy with this configuration, which listens on this port."""
    path = folder / "haproxy.cfg"
    path.write_text(config, encoding="utf-8")
    process = subprocess.Popen([str(haproxy.find_haproxy()), "-db", "-f", path], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _listens(port))
        yield
        assert process.poll() is None, "HAProxy has died"
    finally:
        process.kill()
        process.wait()


@contextmanager
def two_replicas() -> Iterator[list[Replica]]:
    replicas = [Replica("one"), Replica("two")]
    try:
        yield replicas
    finally:
        for replica in replicas:
            replica.stop()


def wait_until(holds: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
