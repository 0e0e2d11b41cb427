"""The rewriting of Serve's configuration, and HAProxy's behaviour with the result."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from service.cluster import haproxy
from service.cluster.ingress import Ingress
from tests.support.balanced import WRITTEN, Replica, balanced
from tests.support.local_service import Client


def test_only_the_public_port_is_open() -> None:
    binds = [
        line.split()[1] for line in haproxy.harden_config(WRITTEN, None).splitlines() if line.strip().startswith("bind")
    ]
    assert binds == ["127.0.0.1:8000"]
    assert "514" not in haproxy.harden_config(WRITTEN, None)
    assert "mode 600 level admin" in haproxy.harden_config(WRITTEN, None)


@pytest.mark.parametrize(
    ("host", "bind"), [("0.0.0.0", "0.0.0.0:8000"), ("::1", "[::1]:8000"), (None, "127.0.0.1:8000")]
)
def test_the_public_port_listens_on_the_chosen_host(host: str | None, bind: str) -> None:
    hardened = haproxy.harden_config(WRITTEN, host)
    assert f"frontend http_frontend\n    bind {bind}\n" in hardened
    assert "server one 127.0.0.1:30000 check" in hardened


def test_a_second_hardening_changes_nothing() -> None:
    once = haproxy.harden_config(WRITTEN, "0.0.0.0")
    assert haproxy.harden_config(once, "0.0.0.0") == once


def test_haproxy_accepts_the_hardened_configuration(tmp_path: Path) -> None:
    binary = haproxy.find_haproxy()
    assert binary is not None
    path = tmp_path / "haproxy.cfg"
    path.write_text(haproxy.harden_config(WRITTEN, None).replace("/run/", f"{tmp_path}/"))
    checked = subprocess.run([binary, "-c", "-f", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def get_text(port: int, path: str = "/") -> str:
    with Client(port) as client:
        return client.get(path).body.decode()


def gets_all_requests(port: int, name: str) -> bool:
    """Return whether ten requests in a row reach this replica, within 10 s.

    It may take some tries, because HAProxy counts a connection for a moment after its answer.
    """
    deadline_s, row = time.monotonic() + 10, 0
    while row < 10 and time.monotonic() < deadline_s:
        row = row + 1 if get_text(port) == name else 0
    return row == 10


def test_the_first_idle_replica_gets_the_request(tmp_path: Path) -> None:
    first, second = replicas = [Replica("one"), Replica("two")]
    try:
        with balanced(tmp_path, replicas) as port:
            assert gets_all_requests(port, "one")
            slow = threading.Thread(target=get_text, args=(port, "/slow"))
            slow.start()
            assert first.entered.wait(10)
            assert gets_all_requests(port, "two")
            first.released.set()
            slow.join()
            assert gets_all_requests(port, "one")
            first.stop()
            assert gets_all_requests(port, "two")
    finally:
        second.stop()
        first.server_close()


@pytest.mark.parametrize("size", [100, 30_000, 120_000])
def test_requests_of_a_dying_replica_are_retried_on_another(tmp_path: Path, size: int) -> None:
    first, second = replicas = [Replica("one"), Replica("two")]
    try:
        with balanced(tmp_path, replicas) as port, Client(port) as client:
            assert gets_all_requests(port, "one")
            assert client.post({"inputs": "x" * size}, "/").body in (b"one", b"two")
            first.dying.set()
            for _ in range(20):
                assert client.post({"inputs": "x" * size}, "/").body == b"two"
    finally:
        first.stop()
        second.stop()


def test_an_endless_body_gets_a_problem(tmp_path: Path) -> None:
    first, second = replicas = [Replica("one"), Replica("two")]
    try:
        with (
            balanced(tmp_path, replicas, Ingress(request_timeout_s=1)) as port,
            socket.create_connection(("127.0.0.1", port), 30) as connection,
        ):
            connection.sendall(b"POST / HTTP/1.1\r\nHost: heed\r\nContent-Length: 10\r\n\r\n12345")
            with connection.makefile("rb") as answer:
                head, _, body = answer.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"content-type: application/problem+json" in head.lower()
        assert json.loads(body)["code"] == "body_timeout"
    finally:
        first.stop()
        second.stop()


def test_refusals_of_haproxy_are_told_from_answers_of_replicas(tmp_path: Path) -> None:
    replicas = [Replica("one"), Replica("two")]
    try:
        with balanced(tmp_path, replicas) as port, Client(port) as client:
            client.get("/")  # after which HAProxy has counted the connections that waited for its start
            before = haproxy.read_stats(tmp_path / "admin.sock")
            assert client.send("PUT", "/").status == 501  # a replica's answer
            with socket.create_connection(("127.0.0.1", port), 30) as connection:
                connection.sendall(b"no HTTP\r\n\r\n")
                assert b" 400 " in connection.recv(100)
            after = haproxy.read_stats(tmp_path / "admin.sock")
        assert before is not None
        assert after is not None
        assert {statuses: after.refused[statuses] - before.refused[statuses] for statuses in ("4xx", "5xx")} == {
            "4xx": 1,
            "5xx": 0,
        }
    finally:
        for replica in replicas:
            replica.stop()


def test_every_replica_has_one_rule_in_each_lane() -> None:
    rules = [line.strip() for line in haproxy.harden_config(WRITTEN, None).splitlines() if "use-server" in line]
    assert rules == [
        f"use-server {name} if {{ srv_conn(replicas{lane}/{name}) eq 0 }}"
        for lane in ("", "-light", "-explain", "-large")
        for name in ("one", "two")
    ]
