"""HAProxy admits what gateways can have in hand, lets the rest wait for a while, and refuses what cannot be in time."""

from __future__ import annotations

import csv
import io
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.cluster.ingress import ARRIVAL_HEADER, SAME_MACHINE_CONNECT_MS, Ingress
from service.errors import NotReady, Overloaded, Problem
from tests.support.balanced import Replica, balanced, two_replicas, wait_until
from tests.support.local_service import Client, Reply

PATIENT = Ingress(gateway_requests=2, queue_s=60)
IMPATIENT = Ingress(gateway_requests=1, queue_s=0.2)


def read_stats(folder: Path, backend: str = "replicas", server: str = "BACKEND") -> dict[str, str]:
    """Return the row of a backend or of one of its servers in HAProxy's statistics."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(folder / "admin.sock"))
        connection.sendall(b"show stat\n")
        with connection.makefile(encoding="utf-8") as answer:
            table = answer.read().removeprefix("# ")
    rows = csv.DictReader(io.StringIO(table))
    return next(row for row in rows if (row["pxname"], row["svname"]) == (backend, server))


def waiting(folder: Path, backend: str = "replicas") -> int:
    return int(read_stats(folder, backend)["qcur"])


@contextmanager
def posts(port: int, count: int, path: str = "/slow", body: object = "text") -> Iterator[list[Future[Reply]]]:
    """Post at once over several connections. The replies are there when the replicas release them."""
    with Client(port) as client, ThreadPoolExecutor(count) as pool:
        yield [pool.submit(client.post, body, path) for _ in range(count)]


def fill(replicas: list[Replica], in_hand: int) -> None:
    wait_until(lambda: [replica.in_hand for replica in replicas] == [in_hand, in_hand])


def expect_problem(reply: Reply, kind: type[Problem]) -> None:
    assert reply.status == kind.status
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json["instance"].startswith("urn:heed:request:")
    assert reply.json | {"instance": "", "detail": ""} == {
        "type": f"urn:heed:problem:{kind.code}",
        "title": kind.title,
        "status": kind.status,
        "detail": "",
        "instance": "",
        "code": kind.code,
    }
    if kind in (Overloaded, NotReady):
        assert int(reply.headers["retry-after"]) >= 1


def test_a_gateway_has_no_more_in_hand_than_it_may(tmp_path: Path) -> None:
    with two_replicas() as replicas, balanced(tmp_path, replicas, PATIENT) as port, posts(port, 7) as replies:
        fill(replicas, 2)
        wait_until(lambda: waiting(tmp_path) == 3)
        for replica in replicas:
            replica.released.set()
        assert [reply.result().status for reply in replies] == [200] * 7
        assert [replica.most_in_hand for replica in replicas] == [2, 2]


def test_health_checks_take_no_place(tmp_path: Path) -> None:
    with two_replicas() as replicas, balanced(tmp_path, replicas, PATIENT) as port, posts(port, 4):
        fill(replicas, 2)
        time.sleep(1)  # of checks each 200 ms, any of which would mark a replica down that does not answer it
        assert read_stats(tmp_path)["act"] == "2"
        for replica in replicas:
            replica.released.set()


def test_a_request_whose_time_in_the_queue_is_over_gets_429(tmp_path: Path) -> None:
    with two_replicas() as replicas, balanced(tmp_path, replicas, IMPATIENT) as port, posts(port, 2) as replies:
        fill(replicas, 1)
        with Client(port) as client:
            reply = client.post("text", "/late")
        expect_problem(reply, Overloaded)
        assert reply.seconds > 0.1
        assert all(path == "/slow" for replica in replicas for path, _ in replica.seen)
        for replica in replicas:
            replica.released.set()
        assert [reply.result().status for reply in replies] == [200, 200]


def test_a_request_that_would_wait_too_long_is_refused_at_once(tmp_path: Path) -> None:
    ingress = Ingress(gateway_requests=1, queue_s=5)  # at one request per second, five may wait
    with two_replicas() as replicas, balanced(tmp_path, replicas, ingress) as port, posts(port, 2) as first:
        fill(replicas, 1)
        wait_until(lambda: all(read_stats(tmp_path, server=name)["rate"] == "0" for name in ("one", "two")))
        with posts(port, 6) as others, Client(port) as client:
            wait_until(lambda: waiting(tmp_path) == 6)
            reply = client.post("text", "/late")
            expect_problem(reply, Overloaded)
            assert waiting(tmp_path) == 6, "it was refused while the others still wait"
            assert reply.headers["retry-after"] == "7"
            for replica in replicas:
                replica.released.set()
            assert [reply.result().status for reply in [*first, *others]] == [200] * 8
        assert all(path == "/slow" for replica in replicas for path, _ in replica.seen)


@pytest.mark.parametrize("requests_before", [0, 1])
def test_a_client_that_goes_away_leaves_the_queue(tmp_path: Path, requests_before: int) -> None:
    with two_replicas() as replicas, balanced(tmp_path, replicas, Ingress(1, queue_s=60)) as port:
        connection = socket.create_connection(("127.0.0.1", port), 10)
        for _ in range(requests_before):
            connection.sendall(b"GET / HTTP/1.1\r\nHost: heed\r\n\r\n")
            assert b"200" in connection.recv(1000)
        with posts(port, 2):
            fill(replicas, 1)
            connection.sendall(b"POST /gone HTTP/1.1\r\nHost: heed\r\nContent-Length: 4\r\n\r\ntext")
            wait_until(lambda: waiting(tmp_path) == 1)
            connection.close()
            wait_until(lambda: waiting(tmp_path) == 0)
            for replica in replicas:
                replica.released.set()
        assert "/gone" not in {path for replica in replicas for path, _ in replica.seen}


def test_each_lane_is_answered_while_the_others_are_full(tmp_path: Path) -> None:
    large = "x" * 110_000
    slow = {"": ("/slow", "text"), "-explain": ("/v1/explain/slow", "text"), "-large": ("/slow", large)}
    fast = {"": ("/v1/x", "text"), "-explain": ("/v1/explain/x", "text"), "-large": ("/v1/x", large)}
    places = {"": 1, "-explain": 8, "-large": 4}
    for lane in slow:
        with two_replicas() as replicas, balanced(tmp_path, replicas, Ingress(1, queue_s=60)) as port:
            path, body = slow[lane]
            with posts(port, 2 * places[lane] + 1, path, body), Client(port) as client:
                fill(replicas, places[lane])
                wait_until(lambda name=f"replicas{lane}": waiting(tmp_path, name) == 1)  # type: ignore[misc]
                replies = [
                    client.get("/readyz"),
                    *(client.post(fast[key][1], fast[key][0]) for key in fast if key != lane),
                ]
                assert [reply.status for reply in replies] == [200, 200, 200]
                assert max(reply.seconds for reply in replies) < 10, "the held requests end after more than that"
                for replica in replicas:
                    replica.released.set()


def test_a_gateway_that_is_not_ready_says_so_itself(tmp_path: Path) -> None:
    with two_replicas() as replicas, balanced(tmp_path, replicas) as port, Client(port) as client:
        reply = client.get("/503")
        assert (reply.status, reply.body) == (503, b"one")


def test_haproxy_alone_says_when_a_request_came(tmp_path: Path) -> None:
    with two_replicas() as replicas, balanced(tmp_path, replicas) as port, Client(port) as client:
        before_us = time.time() * 1e6
        client.send("GET", "/", headers={ARRIVAL_HEADER: "1"})
        ((_, headers),) = replicas[0].seen
        assert before_us - 5000 < int(headers[ARRIVAL_HEADER.lower()]) < time.time() * 1e6 + 5000


def test_a_request_that_waited_brings_the_time_of_its_arrival(tmp_path: Path) -> None:
    with two_replicas() as replicas, balanced(tmp_path, replicas, Ingress(1, queue_s=60)) as port, posts(port, 2):
        fill(replicas, 1)
        with posts(port, 1, "/waited"):
            wait_until(lambda: waiting(tmp_path) == 1)
            released_us = time.time() * 1e6
            for replica in replicas:
                replica.released.set()
        ((_, headers),) = [one for replica in replicas for one in replica.seen if one[0] == "/waited"]
        assert int(headers[ARRIVAL_HEADER.lower()]) < released_us


@pytest.mark.parametrize("path", ["/readyz", "/healthz", "/-/healthz", "/-/routes", "/v1/sentiment", "/"])
def test_without_a_gateway_every_path_is_refused_at_once_and_serves_own_proxy_gets_nothing(
    tmp_path: Path, path: str
) -> None:
    last = Replica("last")
    with two_replicas() as replicas, balanced(tmp_path, [*replicas, last], PATIENT) as port, Client(port) as client:
        assert client.get("/-/healthz").status == 200
        for replica in replicas:
            replica.stop()
        wait_until(lambda: read_stats(tmp_path)["act"] == "0")
        replies = [client.get(path), client.post("text", path)]
        for reply in replies:
            expect_problem(reply, NotReady)
        assert min(reply.seconds for reply in replies) < 0.1
        assert last.seen == []
    last.stop()


@pytest.mark.parametrize("path", ["/v1/sentiment", "/v1/explain/sentiment"])
def test_a_request_that_finds_all_gateways_dead_gets_503(tmp_path: Path, path: str) -> None:
    """The first request marks them down before a health check does."""
    ingress = Ingress(connect_ms=SAME_MACHINE_CONNECT_MS)
    with two_replicas() as replicas, balanced(tmp_path, replicas, ingress) as port, Client(port) as client:
        for replica in replicas:
            replica.stop()
        reply = client.post("text", path)
        expect_problem(reply, NotReady)
        assert reply.seconds < 1, "HAProxy waited a second before it tried the second gateway"
