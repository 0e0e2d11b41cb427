"""The real service as a process tree, started as an operator starts it, and a client for it.

Nothing is imported from `service`. The tests observe it through the command line, sockets and /proc.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

COMMAND = [str(Path(sys.executable).parent / "heed"), "serve"]
JSON = {"Content-Type": "application/json"}
ONLY_SENTIMENT = {"HEED_INTENT_BUNDLE": "none", "HEED_RECOMMEND_BUNDLE": "none"}


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """A client with one persistent connection per thread. It reopens a connection that the server has closed."""

    def __init__(self, port: int, timeout_s: float = 30.0) -> None:
        self._port = port
        self._timeout_s = timeout_s
        self._threads = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        started_s = time.monotonic()
        connection = self._connection()
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise
        names = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, names, content, time.monotonic() - started_s)

    def get(self, path: str) -> Reply:
        return self.send("GET", path)

    def post(self, content: object, path: str = "/v1/sentiment") -> Reply:
        return self.send("POST", path, json.dumps(content).encode(), JSON)

    def _connection(self) -> http.client.HTTPConnection:
        if not hasattr(self._threads, "connection"):
            self._threads.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout_s)
            self._connections.append(self._threads.connection)
        connection: http.client.HTTPConnection = self._threads.connection
        if connection.sock and select.select([connection.sock], [], [], 0)[0]:
            connection.close()  # no request is pending, so the only thing to read is that the server closed it
        return connection


class Service:
    """A started `heed serve` and every process below it."""

    def __init__(
        self, bundle: Path, port: int, replicas: int = 2, environment: Mapping[str, str] | None = None
    ) -> None:
        self.port = port
        self.client = Client(port)
        self._started_s = time.monotonic()
        self.process = subprocess.Popen(
            [*COMMAND, "--port", str(port), "--bundle", str(bundle), "--replicas", str(replicas)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **ONLY_SENTIMENT, **(environment or {})},
        )
        self.seconds_to_ready = self._wait_ready()

    def processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def replicas(self) -> list[psutil.Process]:
        return [p for p in self.processes() if "ServeReplica" in command_of(p)]

    def stop(self, *signals: signal.Signals) -> tuple[int, str, str]:
        """Send the signals half a second apart. Return the exit code, stdout and stderr."""
        for signal_number in signals or (signal.SIGINT,):
            self.process.send_signal(signal_number)
            time.sleep(0.5)
        self.client.__exit__()
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def _wait_ready(self) -> float:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("Ready"):
                return time.monotonic() - self._started_s
        raise AssertionError(f"the service did not start: {self.process.communicate()[1]}")


def command_of(process: psutil.Process) -> str:
    """Return the command as `ps` shows it, or "" if the process has ended."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def listening(service: Service) -> dict[tuple[str, int], str]:
    """Return the addresses and ports on which the service listens, with the process of each."""
    return {
        (connection.laddr.ip, connection.laddr.port): command_of(process)[:80]
        for process in service.processes()
        for connection in process.net_connections("inet")
        if connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
    }


def exposed(ports: dict[tuple[str, int], str]) -> dict[tuple[str, int], str]:
    """Return the ports that other machines can reach."""
    return {address: process for address, process in ports.items() if not is_loopback(address[0])}


def is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback


def run_refused(*arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str, float]:
    """Run a `heed serve` that should not start. Return its exit code, stderr and seconds."""
    started_s = time.monotonic()
    done = subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **ONLY_SENTIMENT, **(environment or {})},
    )
    return done.returncode, done.stderr, time.monotonic() - started_s


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post_all(port: int, contents: Sequence[object], connections: int, path: str = "/v1/sentiment") -> list[Reply]:
    """Post the contents over several connections, which reach all replicas. Return the replies in order."""
    with Client(port) as client, ThreadPoolExecutor(connections) as pool:
        return list(pool.map(lambda content: client.post(content, path), contents))


@contextmanager
def load(
    port: int, connections: int, content: Callable[[int], object], path: str = "/v1/sentiment"
) -> Iterator[list[Reply | Exception]]:
    """Send requests without pause while the block runs. The list of replies and errors is complete at its end."""
    outcomes: list[Reply | Exception] = []
    stopped = threading.Event()

    def send_requests(index: int) -> None:
        while not stopped.is_set():
            try:
                outcomes.append(client.post(content(index), path))
            except (OSError, http.client.HTTPException) as error:
                outcomes.append(error)
            index += connections

    with Client(port) as client, ThreadPoolExecutor(connections) as pool:
        tasks = [pool.submit(send_requests, index) for index in range(connections)]
        try:
            yield outcomes
        finally:
            stopped.set()
            for task in tasks:
                task.result()


def metric_sum(client: Client, name: str, **labels: str) -> float:
    """Return the sum of the metric's samples with these labels."""
    total = 0.0
    for line in client.get("/metrics").body.decode().splitlines():
        sample = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if (
            sample
            and sample[1] == name
            and dict(re.findall(r'(\w+)="(.*?)"', sample[2] or "")).items() >= labels.items()
        ):
            total += float(sample[3])
    return total
