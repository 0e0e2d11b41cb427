"""A killed process that serves requests is replaced at once, and without one that it needs the service ends."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.support.local_service import Reply, Service, command_of, free_port, load

EXIT_TIMEOUT_S = 5.0
PROXY_TIMEOUT_S = 1.5
TAKE_OVER_TIMEOUT_S = 90.0


def programs(service: Service, name: str) -> list[psutil.Process]:
    return [process for process in service.processes() if name_of(process) == name]


def name_of(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def managers(service: Service) -> list[psutil.Process]:
    return [process for process in service.processes() if command_of(process).startswith("ray::HAProxyManager")]


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_without_a_process_of_ray_the_service_ends_at_once(bundle: Path, name: str) -> None:
    service = Service(bundle, free_port(), replicas=1)
    processes = service.processes()
    (needed,) = programs(service, name)
    needed.kill()
    killed_s = time.monotonic()
    _, errors = service.process.communicate(timeout=60)
    assert service.process.returncode == 1
    assert "Ray's" in errors.splitlines()[-1]
    assert "ended unexpectedly" in errors.splitlines()[-1]
    assert time.monotonic() - killed_s < EXIT_TIMEOUT_S
    assert not [process for process in processes if process.is_running()]


def test_a_killed_proxy_is_back_at_once_and_knows_new_replicas_later(bundle: Path) -> None:
    service = Service(bundle, free_port(), replicas=2)
    try:
        (manager,) = managers(service)
        (proxy,) = programs(service, "haproxy")
        with load(service.port, 4, lambda index: {"inputs": f"profit up {index}"}) as outcomes:
            time.sleep(0.5)
            proxy.kill()
            killed_s = time.monotonic()
            while (now := time.monotonic()) - killed_s < PROXY_TIMEOUT_S or not managers(service):
                assert now - killed_s < TAKE_OVER_TIMEOUT_S
                time.sleep(0.05)
            refused = len([outcome for outcome in outcomes if not isinstance(outcome, Reply)])
            assert isinstance(outcomes[-1], Reply)
            wait_for_take_over(service, manager.pid, killed_s)
        assert all(isinstance(outcome, Reply) for outcome in outcomes[refused + 4 :][-100:])
        replace_replica(service)
    finally:
        service.stop()


def test_no_request_is_refused_when_the_manager_of_the_proxy_is_killed(bundle: Path) -> None:
    service = Service(bundle, free_port(), replicas=2)
    try:
        (manager,) = managers(service)
        with load(service.port, 4, lambda index: {"inputs": f"profit up {index}"}) as outcomes:
            time.sleep(0.5)
            manager.kill()
            wait_for_take_over(service, manager.pid, time.monotonic())
            time.sleep(1)
        failed = [outcome for outcome in outcomes if not isinstance(outcome, Reply) or outcome.status != 200]
        assert not failed
        replace_replica(service)
    finally:
        service.stop()


def wait_for_take_over(service: Service, old_manager: int, since_s: float) -> None:
    """Wait until HAProxy is a child of a new manager."""
    while True:
        new = [process.pid for process in managers(service) if process.pid != old_manager]
        if any(process.ppid() in new for process in programs(service, "haproxy")):
            return
        assert time.monotonic() - since_s < TAKE_OVER_TIMEOUT_S
        time.sleep(0.2)


def replace_replica(service: Service) -> None:
    """Kill a replica, and wait until requests reach its successor: HAProxy was reloaded with it."""
    known = {replica.pid for replica in service.replicas()}
    os.kill(min(known), signal.SIGKILL)
    killed_s = time.monotonic()
    while not [replica for replica in service.replicas() if replica.pid not in known and receives(service, replica)]:
        assert time.monotonic() - killed_s < TAKE_OVER_TIMEOUT_S
        service.client.post({"inputs": "profit up"})
        time.sleep(0.2)


def receives(service: Service, replica: psutil.Process) -> bool:
    """Return whether HAProxy has a connection to the replica, besides checks."""
    with load(service.port, 8, lambda index: {"inputs": f"costs down {index}"}):
        time.sleep(0.3)
        try:
            connections = replica.net_connections("tcp4")
        except psutil.NoSuchProcess:
            return False
        return any(each.status == "ESTABLISHED" and 30_000 <= each.laddr.port <= 31_000 for each in connections)
