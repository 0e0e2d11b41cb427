"""A killed HAProxy comes back within a moment, and outlives a killed manager, as Serve's manager starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from service.cluster import haproxy
from service.cluster.process_tree import adopt_orphans
from service.cluster.proxy_guard import ProxyGuard, find_process
from tests.support.balanced import WRITTEN, Replica
from tests.support.local_service import Client, free_port
from tests.system.test_haproxy import get_text

LAUNCHER = [sys.executable, "-c", "from service.cluster.haproxy import main; main()"]
MANAGER = "import subprocess, sys, time; subprocess.run(sys.argv[1:]); time.sleep(1000)"
TIMEOUT_S = 20.0


class Managed:
    """An HAProxy in front of one replica, started by a process that stands for Serve's manager."""

    def __init__(self, folder: Path, replica: Replica, root: int | None = None) -> None:
        self.port, self.path, self.admin_socket = free_port(), folder / "haproxy.cfg", folder / "admin.sock"
        self.environment = {**os.environ, haproxy.ROOT_VARIABLE: str(root or os.getpid())}
        config = WRITTEN.replace("/run/", f"{folder}/").replace(":8000", f":{self.port}")
        config = config.replace(":30000 ", f":{replica.server_port} ").replace(" one ", " SERVE_REPLICA-one ")
        self._config = "".join(line for line in config.splitlines(keepends=True) if " two " not in line)
        self.manager = self.start_manager(has_replicas=True)
        wait_for(lambda: find_process(self.admin_socket) is not None)
        wait_for(lambda: get_text(self.port) == "one")

    def start_manager(self, *arguments: str, has_replicas: bool) -> subprocess.Popen[bytes]:
        lines = self._config.splitlines(keepends=True)
        written = lines if has_replicas else [line for line in lines if "    server " not in line]
        self.path.write_text("".join(written))
        command = [sys.executable, "-c", MANAGER, *LAUNCHER, "-db", "-f", str(self.path), *arguments]
        return subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL)

    def process(self) -> psutil.Process:
        found = find_process(self.admin_socket)
        assert found is not None
        return psutil.Process(found.process_id)


def wait_for(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + TIMEOUT_S
    while True:
        try:
            if holds():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.fixture
def managed(tmp_path: Path) -> Iterator[Managed]:
    adopt_orphans()
    replica = Replica("one")
    managed = Managed(tmp_path, replica)
    guard = ProxyGuard(lambda: [managed.admin_socket], LAUNCHER, managed.environment, tmp_path / "log")
    guard.start()
    try:
        yield managed
    finally:
        guard.stop()
        replica.stop()
        managed.manager.kill()
        for process_id in haproxy.find_running(managed.path, haproxy.find_haproxy() or Path()):
            os.kill(process_id, signal.SIGKILL)
        managed.manager.wait()


@contextmanager
def asking(port: int) -> Iterator[list[str]]:
    """Ask all the time, each time over a new connection, and collect the answers and the errors."""
    answers: list[str] = []
    stopped = threading.Event()

    def ask() -> None:
        while not stopped.is_set():
            try:
                with Client(port) as client:
                    answers.append(client.get("/").body.decode())
            except OSError as error:
                answers.append(repr(error))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        stopped.set()
        thread.join()


def test_a_killed_haproxy_serves_again_and_its_manager_ends(managed: Managed) -> None:
    killed = managed.process()
    killed.kill()
    wait_for(lambda: (found := find_process(managed.admin_socket)) is not None and found.process_id != killed.pid)
    wait_for(lambda: get_text(managed.port) == "one")
    managed.manager.wait(TIMEOUT_S)  # without its status, which the guard may have reaped as that of an orphan


def test_no_request_is_lost_when_the_manager_is_killed_and_replaced(managed: Managed) -> None:
    orphan = managed.process()
    with asking(managed.port) as answers:
        managed.manager.kill()
        managed.manager.wait()
        wait_for_more(answers)
        managed.manager = managed.start_manager(has_replicas=False)
        wait_for(lambda: managed.process().pid != orphan.pid)
        wait_for(lambda: not is_running(orphan))
        wait_for_more(answers)
    assert set(answers) == {"one"}


def wait_for_more(answers: list[str]) -> None:
    asked = len(answers)
    wait_for(lambda: len(answers) > asked + 20)


def is_running(process: psutil.Process) -> bool:
    return bool(psutil.pid_exists(process.pid) and process.status() != psutil.STATUS_ZOMBIE)


def test_haproxy_ends_with_the_service_although_its_manager_ended_before(managed: Managed) -> None:
    root = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folder = managed.path.parent / "other"
    folder.mkdir()
    replica = Replica("one")
    try:
        other = Managed(folder, replica, root.pid)
    finally:
        replica.stop()
    other.manager.kill()
    other.manager.wait()
    proxy = other.process()
    assert proxy.is_running()
    root.communicate(b"")
    wait_for(lambda: not is_running(proxy))
