"""Tests of the parts of the serving benchmark whose faults would go unnoticed."""

from __future__ import annotations

import gzip
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from models.bundle import SHIPPED
from models.text.tokenizer import Tokenizer
from tests.bench.harness.closed_loop import http_request
from tests.bench.harness.processes import NotStartedError
from tests.bench.serving import open_loop, texts
from tests.bench.serving.contenders import INLINE, Machine
from tests.bench.serving.report import About, render
from tests.bench.serving.session import Inputs, Measurement, Turn
from tests.bench.serving.targets import Round, Target
from tests.bench.serving.workloads import CAPACITY, WORKLOADS, choose_workloads

REQUESTS = [http_request("/predict", b"{}")]


@contextmanager
def server(
    delay_s: float = 0.0, stall: tuple[float, float] = (0.0, 0.0), status: int = 200, chunked: bool = False
) -> Iterator[int]:
    """Run a server and yield its port. It answers with a delay. Within `stall` of its first request, it is silent."""
    first_s: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            first_s.append(time.monotonic())
            since_s = time.monotonic() - first_s[0]
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(stall[1] - since_s if stall[0] <= since_s < stall[1] else delay_s)
            with suppress(ConnectionError):  # the caller has given up
                self.send_response(status)
                self.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", "2")))
                self.end_headers()
                self.wfile.write(b"2\r\nok\r\n0\r\n\r\n" if chunked else b"ok")

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield listening.server_port
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()


def test_an_open_loop_keeps_its_rate_against_a_slow_server() -> None:
    with server(delay_s=0.2) as port:
        load = open_loop.measure(port, REQUESTS, rate=50, seconds=0.6, deadline_s=5)
    assert (load.answered, load.refused, load.broken, load.late) == (30, 0, 0, 0)
    assert load.p50_ms >= 200


def test_chunked_answers_count() -> None:
    with server(chunked=True) as port:
        load = open_loop.measure(port, REQUESTS, rate=40, seconds=1, deadline_s=5)
    assert (load.answered, load.broken, load.late) == (40, 0, 0)


def test_a_stall_delays_every_request_that_was_due_in_it() -> None:
    with server(stall=(0.1, 0.7)) as port:
        load = open_loop.measure(port, REQUESTS, rate=50, seconds=0.8, deadline_s=5)
    assert load.p99_ms > 300
    assert load.p50_ms > 100


def test_answers_after_the_deadline_are_late() -> None:
    with server(delay_s=1.0) as port:
        load = open_loop.measure(port, REQUESTS, rate=20, seconds=0.5, deadline_s=0.2)
    assert (load.answered, load.late) == (0, 10)


def test_refusals_are_not_answers() -> None:
    with server(status=429) as port:
        load = open_loop.measure(port, REQUESTS, rate=20, seconds=0.5, deadline_s=10)
    assert (load.answered, load.refused) == (0, 10)


def write(data: Path, name: str, rows: list[str]) -> None:
    (data / name).mkdir()
    with gzip.open(data / name / "validation.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": row}) + "\n" for row in rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path, "en", [f"Profit of company {n} rises" + " and rises" * (n % 100) for n in range(200)])
    write(tmp_path, "zh", [f"公司{n}的利润大增" + "而且继续增长" * (n % 60) for n in range(200)])
    return tmp_path


def test_text_sets_are_reproducible_and_within_their_bounds(data: Path) -> None:
    tokenizer = Tokenizer(SHIPPED / "tokenizer.json", 512)
    sets = texts.read(data, tokenizer, 40)
    assert sets == texts.read(data, tokenizer, 40)
    assert [tokenizer.encode(text).length for text in sets["mixed"].texts] == list(sets["mixed"].lengths)
    assert all(8 <= length <= 40 for length in sets["short"].lengths)
    assert all(8 <= length <= 256 for length in sets["mixed"].lengths)
    assert max(sets["mixed"].lengths) > 100


def measured(contender: str, number: int, rate: float) -> Measurement:
    return Measurement(contender, "short-64", number, rate, rate, 10.0, 20.0, 1.0, 1e9)


def test_targets_compare_within_a_round() -> None:
    rounds = [
        Round([measured("heed", 1, 90.0), measured("limit", 1, 100.0)]),
        Round([measured("heed", 2, 45.0), measured("limit", 2, 50.0)]),
        Round([measured("heed", 3, 10.0)]),
    ]
    target = Target("", 0.8, 0.95, lambda round_: round_.rate("heed", "short-64") / round_.rate("limit", "short-64"))
    assert target.measured(rounds) == pytest.approx(0.9)
    assert target.verdict(0.9) == "must"
    assert target.verdict(math.nan) == "not measured"


def test_the_report_lists_missing_measurements() -> None:
    about = About("sentiment 1.0.0", 1, ["short: 2 texts"], {"heed": "heed 0.1.0"}, ["LitServe, round 1: no"])
    written = render(about, [measured("heed", 1, 90.0)])
    assert "Did not run: LitServe, round 1: no" in written
    assert "| not measured |" in written


def test_peers_run_the_compared_workloads_and_all_run_the_named_ones() -> None:
    assert [workload.name for workload in choose_workloads(None, of_peer=True)] == [
        "short-1",
        "short-64",
        "mixed-64",
        "open-80",
    ]
    assert choose_workloads(None, of_peer=False) == [workload for workload in WORKLOADS if workload.usual]
    assert [workload.name for workload in choose_workloads(["short-512"], of_peer=False)] == ["short-512"]
    assert [workload.name for workload in choose_workloads(["open-150"], of_peer=True)] == [CAPACITY, "open-150"]


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    contender = replace(INLINE, environment={"HEED_NO_SUCH_THING": "1"})
    turn = Turn(contender, Machine(SHIPPED, tmp_path, 0, 1), Inputs({}, {}), 1, 1)
    with pytest.raises(NotStartedError, match="HEED_NO_SUCH_THING"):
        next(turn.serve(WORKLOADS, tmp_path / "log"))
