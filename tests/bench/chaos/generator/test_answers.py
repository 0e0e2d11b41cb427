"""Tests of how the load generator reads answers and counts those that are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.chaos.generator import servers
from tests.bench.chaos.generator.checks import LOAD, measure
from tests.bench.chaos.generator.servers import OK

pytestmark = pytest.mark.slow

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("wire", [b"", OK[:30], OK[:-1], CHUNKED + b"2\r\n{}"])
def test_a_server_that_closes_before_the_end_is_counted(program: Path, wire: bytes) -> None:
    report = measure(program, servers.sends(wire, close=True))
    assert (report.total.closed, report.total.stale, report.total.statuses) == (20, 0, {})


def test_a_reused_connection_that_was_closed_at_once_is_stale(program: Path) -> None:
    report = measure(program, servers.answers_once())
    assert report.total.good == report.connections.opened
    assert report.total.closed == report.total.stale == report.connections.reused > 0


def test_a_server_that_breaks_the_connection_off_is_counted(program: Path) -> None:
    total = measure(program, servers.resets).total
    assert (total.resets, total.closed, total.stale) == (20, 0, 0)


@pytest.mark.parametrize(
    "wire",
    [
        OK,
        CHUNKED + b"1\r\n{\r\n0001;name=x\r\n}\r\n0\r\nTrailer: x\r\n\r\n",
        CHUNKED + b"1A \r\n" + b"x" * 26 + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n" + OK,
        b"HTTP/1.1 200\r\nX: " + b"x" * 3000 + b"\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    ],
    ids=["length", "chunks", "size", "informational", "long"],
)
@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "pieces"])
def test_answers_of_every_form_are_read(program: Path, wire: bytes, in_pieces: bool) -> None:
    answer = servers.sends_in_pieces(wire) if in_pieces else servers.sends(wire)
    load = replace(LOAD, phases=[(50, 0.1)])
    report = measure(program, answer, load)
    assert (report.total.good, report.connections.unsolicited) == (5, 0)


@pytest.mark.parametrize(
    ("head", "closes"),
    [
        (b"HTTP/1.1 200 OK\r\n", True),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n", False),
    ],
)
def test_a_connection_that_shall_close_is_not_used_again(program: Path, head: bytes, closes: bool) -> None:
    report = measure(program, servers.sends(head + b"\r\n{}", close=closes))
    assert (report.total.good, report.connections.opened, report.connections.reused) == (20, 20, 0)


def test_an_idle_connection_that_the_server_closes_costs_no_arrival(program: Path) -> None:
    report = measure(program, servers.sends(OK, close=True), replace(LOAD, phases=[(4, 1.0)]))
    assert (report.total.good, report.connections.opened) == (4, 4)
    assert report.connections.closed_idle >= 3  # the run may end before the last is closed


@pytest.mark.parametrize(
    "wire",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nName : x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        CHUNKED + b"x\r\n",
        CHUNKED + b"1\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000,
    ],
)
def test_malformed_answers_are_counted(program: Path, wire: bytes) -> None:
    assert measure(program, servers.sends(wire), replace(LOAD, phases=[(50, 0.04)])).total.malformed == 2


def test_bytes_after_an_answer_are_counted(program: Path) -> None:
    report = measure(program, servers.sends(OK + b"more"))
    assert (report.total.good, report.connections.unsolicited, report.connections.reused) == (20, 20, 0)
