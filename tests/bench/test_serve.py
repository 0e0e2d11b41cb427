"""The parts of the serving benchmark that could mislead without anyone noticing."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from models.bundle import SHIPPED
from models.tokens import Tokenizer
from tests.bench.serve import arrivals, texts
from tests.bench.serve.figures import Figure, Round
from tests.bench.serve.load import http_request
from tests.bench.serve.report import About, markdown
from tests.bench.serve.turn import Measurement

OK, BUSY = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", b"HTTP/1.1 429 Busy\r\nContent-Length: 0\r\n\r\n"
REQUESTS = [http_request("/predict", b"{}")]


@contextmanager
def server(answer: bytes, delay_s: float = 0.0, stall: tuple[float, float] = (0.0, 0.0)) -> Iterator[int]:
    """The port of one that waits before each answer, and answers nothing between two times after its first request."""
    loop = asyncio.new_event_loop()
    first: list[float] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(4096):
            first.append(time.monotonic())
            since_s = time.monotonic() - first[0]
            await asyncio.sleep(stall[1] - since_s if stall[0] <= since_s < stall[1] else delay_s)
            writer.write(answer)

    listening = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        listening.close()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def test_arrivals_keep_their_rate_beside_a_slow_server() -> None:
    with server(OK, delay_s=0.2) as port:
        found = arrivals.measure(port, REQUESTS, rate=50, seconds=0.6, deadline_s=5)
    assert (found.answered, found.refused, found.broken, found.late) == (30, 0, 0, 0)
    assert found.p50_ms >= 200


def test_a_stall_is_seen_by_every_request_that_was_due_in_it() -> None:
    with server(OK, stall=(0.1, 0.7)) as port:
        found = arrivals.measure(port, REQUESTS, rate=50, seconds=0.8, deadline_s=5)
    assert found.p99_ms > 300
    assert found.p50_ms > 100


def test_who_waits_longer_than_the_deadline_is_late() -> None:
    with server(OK, delay_s=1.0) as port:
        found = arrivals.measure(port, REQUESTS, rate=20, seconds=0.5, deadline_s=0.2)
    assert (found.answered, found.late) == (0, 10)


def test_a_refusal_is_no_answer() -> None:
    with server(BUSY) as port:
        found = arrivals.measure(port, REQUESTS, rate=20, seconds=0.5, deadline_s=10)
    assert (found.answered, found.refused) == (0, 10)


def write(data: Path, name: str, rows: list[str]) -> None:
    (data / name).mkdir()
    with gzip.open(data / name / "validation.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": row}) + "\n" for row in rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path, "en", [f"Profit of company {n} rises" + " and rises" * (n % 100) for n in range(200)])
    write(tmp_path, "zh", [f"公司{n}的利润大增" + "而且继续增长" * (n % 60) for n in range(200)])
    return tmp_path


def test_sets_are_the_same_every_time_and_within_their_bounds(data: Path) -> None:
    tokenizer = Tokenizer(SHIPPED / "tokenizer.json", 512)
    sets = texts.read(data, tokenizer, 40)
    assert sets == texts.read(data, tokenizer, 40)
    assert [tokenizer.encode(text).length for text in sets["mixed"].texts] == list(sets["mixed"].lengths)
    assert all(8 <= length <= 40 for length in sets["short"].lengths)
    assert all(8 <= length <= 256 for length in sets["mixed"].lengths)
    assert max(sets["mixed"].lengths) > 100


def test_tokens_are_counted_as_the_texts_are_asked() -> None:
    assert texts.TextSet("short", ("a", "b"), (3, 5)).tokens_of_first(5) == 19


def measured(contender: str, number: int, rate: float) -> Measurement:
    return Measurement(contender, "short-64", number, rate, rate, 10.0, 20.0, 1.0, 1e9)


def test_ratios_are_taken_within_a_round() -> None:
    rounds = [
        Round([measured("heed", 1, 90.0), measured("limit", 1, 100.0)]),
        Round([measured("heed", 2, 45.0), measured("limit", 2, 50.0)]),
        Round([measured("heed", 3, 10.0)]),
    ]
    figure = Figure("", 0.8, 0.95, lambda one: one.rate("heed", "short-64") / one.rate("limit", "short-64"))
    assert figure.measured(rounds) == pytest.approx(0.9)
    assert figure.verdict(0.9) == "must"
    assert figure.verdict(math.nan) == "not measured"


def test_the_report_says_what_is_missing() -> None:
    about = About("sentiment 1.0.0", 1, ["short: 2 texts"], {"heed": "heed 0.1.0"}, ["LitServe, round 1: no"])
    written = markdown(about, [measured("heed", 1, 90.0)])
    assert "Did not run: LitServe, round 1: no" in written
    assert "| not measured |" in written
