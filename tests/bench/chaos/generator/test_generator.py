"""Tests of the load generator, against tiny servers in this process.

Counts are exact and independent of the speed of the machine: a client that shall be answered waits for long.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.chaos.generator import servers
from tests.bench.chaos.generator.checks import LOAD, check_sums, measure
from tests.bench.chaos.generator.program import (
    MISSING,
    SOURCES,
    GeneratorError,
    command_of,
    compile_program,
    run,
    start,
)
from tests.bench.chaos.generator.results import GaveUp, RetryAfter, Status, parse_report
from tests.bench.chaos.generator.servers import OK, serving

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed"),
]

WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")


def test_a_second_of_fifty_requests_is_answered(program: Path) -> None:
    report = measure(program, servers.sends(OK), replace(LOAD, phases=[(50, 1.0)]))
    total = report.total
    assert (total.arrivals, total.good, total.goodput_per_s) == (50, 50, 50.0)
    assert total.statuses == {200: Status(50, 0, None)}
    assert total.ok_ms == total.all_ms
    assert total.ok_ms is not None
    assert 0 < total.ok_ms.p50 <= total.ok_ms.p90 <= total.ok_ms.p99 <= total.ok_ms.p99_9 <= total.ok_ms.max
    assert list(report.windows.arrivals) == [5] * 10
    connections = report.connections
    assert connections.opened + connections.reused == 50
    assert connections.opened == connections.peak


def test_requests_are_those_that_were_named(program: Path) -> None:
    load = replace(LOAD, bodies=[b"one", b"", "三".encode()], method="PUT", headers=["X-Name: a b", "host: heed"])
    with serving(servers.sends(OK)) as server:
        assert run(program, replace(load, port=server.port, phases=[(50, 0.12)])).total.good == 6
        bodies = sorted(request.body for request in server.requests)
        assert bodies == sorted(2 * [b"one", b"", "三".encode()])
        assert {(request.method, request.path) for request in server.requests} == {("PUT", "/v1/sentiment")}
        for request in server.requests:
            assert request.headers == ["X-Name: a b", "host: heed", f"Content-Length: {len(request.body)}"]


def test_requests_may_have_no_body(program: Path) -> None:
    with serving(servers.sends(OK)) as server:
        load = replace(LOAD, port=server.port, bodies=[], method="GET", headers=[], phases=[(50, 0.04)])
        assert run(program, load).total.good == 2
        assert [list(request.headers) for request in server.requests] == [[f"Host: 127.0.0.1:{server.port}"]] * 2


def test_a_connection_is_reused_unless_each_request_wants_its_own(program: Path) -> None:
    with serving(servers.sends(OK)) as server:
        load = replace(LOAD, port=server.port, fresh=True)
        report = run(program, load)
        assert (report.total.good, report.connections.opened, report.connections.reused) == (20, 20, 0)
        assert server.connections == 20


def test_arrivals_do_not_wait_for_answers(program: Path) -> None:
    report = measure(program, servers.delays(0.4))
    assert report.total.good == 20
    assert report.connections.peak >= 15  # 20 were due before the first answer
    assert report.total.ok_ms is not None
    assert report.total.ok_ms.p50 >= 400


def test_latency_counts_from_when_a_request_was_due(program: Path) -> None:
    """The generator itself is stopped, and tells that it came late."""
    with serving(servers.sends(OK)) as server:
        running = start(program, replace(LOAD, port=server.port, phases=[(50, 1.0)]))
        while not server.requests:
            time.sleep(0.001)
        os.kill(running.pid, signal.SIGSTOP)
        before = len(server.requests)
        time.sleep(0.6)
        os.kill(running.pid, signal.SIGCONT)
        report = running.report()
    check_sums(report)
    assert report.total.good == 50
    assert report.lag_ms is not None
    assert report.total.ok_ms is not None
    if before <= 15:  # else this process was too slow to stop it in time
        assert report.lag_ms.max > 300
        assert report.total.ok_ms.p90 > 300  # most of the 30 that were due meanwhile


def test_an_answer_that_is_read_too_late_is_not_good(program: Path) -> None:
    with serving(servers.delays(0.1)) as server:
        running = start(program, replace(LOAD, port=server.port, phases=[(1, 1)], give_up_s=0.5))
        while not server.requests:
            time.sleep(0.001)
        os.kill(running.pid, signal.SIGSTOP)
        time.sleep(0.8)
        os.kill(running.pid, signal.SIGCONT)
        report = running.report()
    check_sums(report)
    assert report.total.good == 0
    assert report.total.count(200) + report.total.gave_up.total == 1


def test_refusals_are_counted_with_their_headers(program: Path) -> None:
    head = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n"
    answer = servers.sends(
        head + b"Retry-After: 2\r\nContent-Type: application/problem+json\r\n\r\n",
        head + b"retry-after:  17\t\r\ncontent-type:Application/Problem+JSON; charset=utf-8\r\n\r\n",
        head + b"Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\nContent-Type: application/problem+jsonp\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nContent-Type: text/html\r\n\r\nnone",
    )
    report = measure(program, answer)
    total = report.total
    assert total.statuses == {404: Status(5, 0, None), 429: Status(15, 10, RetryAfter(10, 2, 17))}
    assert (total.good, total.ok_ms, total.count(404, 429, 503)) == (0, None, 20)
    assert total.all_ms is not None
    assert (sum(report.windows.refused), sum(report.windows.other)) == (15, 5)


def test_clients_leave_a_silent_server(program: Path) -> None:
    report = measure(program, servers.never_answers, replace(LOAD, give_up_s=0.3))
    assert report.total.gave_up.total == 20
    assert (report.total.good, report.total.all_ms) == (0, None)
    assert sum(report.windows.other) == 20


def test_an_answer_after_its_client_left_is_not_good(program: Path) -> None:
    report = measure(program, servers.delays(0.8), replace(LOAD, give_up_s=0.2))
    assert (report.total.gave_up.total, report.total.good, report.total.statuses) == (20, 0, {})


def test_a_refused_connection_is_counted_by_errno(program: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and never listens
        report = run(program, replace(LOAD, port=free.getsockname()[1]))
    check_sums(report)
    assert report.total.errors == {"ECONNREFUSED": 20}


def test_arrivals_above_the_connections_are_counted(program: Path) -> None:
    load = replace(LOAD, connections=5, give_up_s=3.0)
    report = measure(program, servers.never_answers, load)
    assert (report.total.gave_up, report.total.not_sent) == (GaveUp(0, 0, 5), 15)
    assert report.connections.peak == 5
    assert report.cpu_s < 0.2  # of three seconds: waiting is no work


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit is not installed")
def test_a_lack_of_file_descriptors_is_counted(program: Path) -> None:
    with serving(servers.never_answers) as server:
        command = command_of(program, replace(LOAD, port=server.port, bodies=[], give_up_s=3.0))
        done = subprocess.run(["prlimit", "--nofile=8:8", *command], capture_output=True, text=True, check=True)
    report = parse_report(done.stdout)
    check_sums(report)
    assert report.total.gave_up.total == report.connections.peak < 8
    assert report.total.errors == {"EMFILE": 20 - report.connections.peak}


def test_a_body_larger_than_the_socket_is_sent_whole(program: Path) -> None:
    body = b"x" * 20_000_000
    with serving(servers.sends(OK)) as server:
        load = replace(LOAD, port=server.port, bodies=[body], phases=[(20, 0.1)])
        assert run(program, load).total.good == 2
        assert all(request.body == body for request in server.requests)


def test_phases_follow_each_other(program: Path) -> None:
    report = measure(program, servers.sends(OK), replace(LOAD, phases=[(20, 0.3), (0, 0.2), (100, 0.3), (10, 0.2)]))
    summaries = [phase.summary for phase in report.phases]
    assert [phase.rate for phase in report.phases] == [20, 0, 100, 10]
    assert [(summary.arrivals, summary.good) for summary in summaries] == [(6, 6), (0, 0), (30, 30), (2, 2)]
    assert [summary.start_s for summary in summaries] == pytest.approx([0, 0.3, 0.5, 0.8])
    assert list(report.windows.arrivals) == [2, 2, 2, 0, 0, 10, 10, 10, 1, 1]
    assert summaries[1].goodput_per_s == 0


def test_poisson_gaps_follow_the_seed(program: Path) -> None:
    load = replace(LOAD, gaps="poisson", phases=[(100, 0.5), (50, 0.5)])
    first, again, other = (
        measure(program, servers.sends(OK), replace(load, seed=seed)).windows.arrivals for seed in (1, 1, 2)
    )
    assert first == again != other
    assert len(set(first)) > 2
    assert 40 <= sum(first) <= 115  # five standard deviations around 75


def test_recovery_is_seen_from_outside(program: Path) -> None:
    """The server refuses a burst of 50 requests and ten more, which is a fifth of a second at the later rate."""

    async def answer(request: servers.Request, writer: asyncio.StreamWriter) -> None:
        refused = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
        writer.write(refused if request.body == b"refused" else OK)

    bodies = [b"refused"] * 60 + [b"{}"] * 40
    report = measure(program, answer, replace(LOAD, phases=[(100, 0.5), (50, 1.0)], bodies=bodies))
    assert (report.total.good, sum(report.windows.refused)) == (40, 60)
    assert report.recovery_s(1, steady_s=0.3) == pytest.approx(0.2)
    assert report.recovery_s(0, steady_s=0.3) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"phases": []}, "--phases"),
        ({"phases": [(-1, 1)]}, "--phases"),
        ({"phases": [(1, 0)]}, "--phases"),
        ({"phases": [(float("nan"), 1)]}, "--phases"),
        ({"phases": [(1e6, 3600)]}, "arrivals"),
        ({"port": 0}, "--port"),
        ({"path": "/a b"}, "--path"),
        ({"headers": ["no colon"]}, "--header"),
        ({"give_up_s": 0.0}, "--give-up-ms"),
        ({"connections": 0}, "--connections"),
        ({"host": "256.0.0.1.x"}, "--host"),
        ({"bodies": [b"a\nb"]}, "line feed"),
    ],
)
def test_a_wrong_option_is_one_line(program: Path, change: dict[str, object], words: str) -> None:
    load = replace(LOAD, **{"port": 9, **change})  # type: ignore[arg-type]
    with pytest.raises(GeneratorError, match=words) as caught:
        run(program, load)
    assert str(caught.value).startswith("open_loop: ")


def test_a_missing_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GeneratorError) as caught:
        compile_program(tmp_path)
    assert str(caught.value) == MISSING


def test_a_failing_compiler_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(GeneratorError, match="open_loop"):
        compile_program(tmp_path / "missing")


def test_the_compiler_warns_of_nothing() -> None:
    subprocess.run(["gcc", "-std=c11", "-O2", "-fsyntax-only", *WARNINGS, *map(str, SOURCES)], check=True)
