"""Requests that keep HTTP's letter badly: what HAProxy refuses with a problem, and what it does with the rest."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from service import errors
from service.cluster.ingress import MAX_HEADER_BYTES, MAX_TARGET_BYTES, METHODS, REFUSALS, Refusal
from service.errors import HeadersTooLarge, Problem, TargetTooLong, UnknownMethod
from tests.support.balanced import Replica, balanced


@pytest.fixture(scope="module")
def replicas() -> Iterator[list[Replica]]:
    started = [Replica("one"), Replica("two")]
    yield started
    for replica in started:
        replica.stop()


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory, replicas: list[Replica]) -> Iterator[int]:
    folder: Path = tmp_path_factory.mktemp("haproxy")
    with balanced(folder, replicas) as started:
        yield started


def exchange(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send a request as it is, and return the status, headers and body of the answer."""
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(request)
        with connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            headers = {}
            while line := answer.readline().decode().strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            return status, headers, answer.read(int(headers.get("content-length", "0")))


def expect_problem(port: int, request: bytes, kind: type[Problem]) -> None:
    status, headers, body = exchange(port, request)
    assert status == kind.status
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(body)
    assert (problem["status"], problem["code"], problem["title"]) == (kind.status, kind.code, kind.title)


def get(target: str = "/", *headers: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: heed", *headers, "", ""]).encode()


def test_a_target_has_a_longest_length(port: int) -> None:
    assert exchange(port, get("/" + "a" * (MAX_TARGET_BYTES - 1)))[0] == 200
    expect_problem(port, get("/" + "a" * MAX_TARGET_BYTES), TargetTooLong)
    expect_problem(port, get("/?" + "a" * 100_000), TargetTooLong)


def test_headers_have_a_largest_size(port: int) -> None:
    assert exchange(port, get("/", "A: " + "a" * (MAX_HEADER_BYTES - 100)))[0] == 200
    expect_problem(port, get("/", "A: " + "a" * MAX_HEADER_BYTES), HeadersTooLarge)
    expect_problem(port, get("/", *(f"A-{index}: {'a' * 1000}" for index in range(90))), HeadersTooLarge)


@pytest.mark.parametrize("method", ["FOO", "TRACE", "get", "PROPFIND"])
def test_an_unknown_method_is_refused(port: int, method: str) -> None:
    expect_problem(port, get().replace(b"GET", method.encode(), 1), UnknownMethod)


def test_no_client_opens_a_tunnel(port: int) -> None:
    expect_problem(port, b"CONNECT heed:80 HTTP/1.1\r\nHost: heed:80\r\n\r\n", UnknownMethod)


@pytest.mark.parametrize("method", sorted({*METHODS} - {"GET", "HEAD", "POST"}))
def test_a_known_method_reaches_the_application(port: int, method: str) -> None:
    status, headers, _ = exchange(port, get().replace(b"GET", method.encode(), 1))
    assert (status, headers["server"][:8]) == (501, "BaseHTTP")


def test_a_refusal_of_head_has_no_body(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), 30) as connection, connection.makefile("rb") as answer:
        connection.sendall(get("/" + "a" * MAX_TARGET_BYTES).replace(b"GET", b"HEAD", 1))
        assert answer.readline().startswith(b"HTTP/1.1 414 ")
        while answer.readline().strip():
            pass
        connection.sendall(get())
        assert answer.readline().startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"no HTTP\r\n\r\n",
        b"GET / HTTP/1.1\rHost: heed\r\r",
        b"GET / HTTP/1.1\r\nHost: heed\r\nHost: other\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: heed\r\nA : b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: heed\r\nA: \0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: heed\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: heed\r\nContent-Length: +5\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: heed\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: heed\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n0\n\n",
        get("/", "A: " + "a" * 140_000),
        get("/", *(f"A-{index}: a" for index in range(150))),
    ],
)
def test_what_is_not_http_gets_the_fixed_page_of_haproxy(
    port: int, replicas: list[Replica], request_bytes: bytes
) -> None:
    """HAProxy 2.8 has no setting for this page."""
    seen = sum(len(replica.seen) for replica in replicas)
    status, headers, _ = exchange(port, request_bytes)
    assert status == 400
    assert headers["connection"] == "close"
    assert sum(len(replica.seen) for replica in replicas) == seen


def test_a_bare_line_feed_ends_a_line_and_is_not_passed_on(port: int, replicas: list[Replica]) -> None:
    assert exchange(port, b"GET /bare HTTP/1.1\nHost: heed\nA: b\n\n")[0] == 200
    ((_, headers),) = [seen for replica in replicas for seen in replica.seen if seen[0] == "/bare"]
    assert headers["a"] == "b"


def test_of_two_lengths_only_the_chunks_count_and_the_connection_ends(port: int, replicas: list[Replica]) -> None:
    request = b"POST /two HTTP/1.1\r\nHost: heed\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    status, headers, _ = exchange(port, request + get("/smuggled"))
    assert status == 200
    assert headers["connection"] == "close"
    paths = {path: headers for replica in replicas for path, headers in replica.seen}
    assert "/smuggled" not in paths
    assert "content-length" not in paths["/two"]
    assert paths["/two"]["transfer-encoding"] == "chunked"


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.code)
def test_haproxy_and_the_application_describe_a_problem_alike(refusal: Refusal) -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Problem)]
    assert (refusal.status, refusal.title) in [(kind.status, kind.title) for kind in kinds if kind.code == refusal.code]
    assert not re.search(r"['%\"\\]", refusal.title + refusal.detail), "HAProxy would read it as its own syntax"
