from __future__ import annotations

import json
import os
import re
import threading
from contextlib import suppress
from pathlib import Path

import pytest
import structlog

from service.errors import Problem, from_unknown
from service.telemetry import logs
from service.telemetry.access_log import AccessLog, AccessRecord
from service.telemetry.records import MAX_LINE_BYTES, LogFormat, render

pytestmark = pytest.mark.usefixtures("restored_logs")

FORGED = '\r\n\x1b[31m\x9b1m\x7f\u2028\u202e\ud800{"event":"forged"}'
HEAD = {"time": "2026-12-01T10:00:00.000Z", "level": "info", "event": "event"}


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_record_is_one_line_whatever_its_values_contain(form: LogFormat) -> None:
    line = render({**HEAD, "value": FORGED, "values": [FORGED], "by name": {FORGED: FORGED}}, form)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    text = line.decode().rstrip("\n")
    assert text.isprintable()
    if form == "json":
        assert json.loads(text)["value"] == FORGED


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_line_fits_into_one_atomic_write_however_long_its_values_are(form: LogFormat) -> None:
    line = render({**HEAD, "a": "\x00" * 10**6, "trace": ["界" * 500] * 50}, form)
    assert len(line) <= MAX_LINE_BYTES
    assert b"\\u0000" in line
    assert b"cut" in render({**HEAD, **{f"field{index}": FORGED for index in range(400)}}, form)


def test_a_record_at_a_terminal_is_readable() -> None:
    record = {**HEAD, "file": "a.intent", "reason": 'no "label"', "name": "银行", "items": 3, "trace": ["a.py:1 f"]}
    assert render(record, "console").decode() == (
        '2026-12-01T10:00:00.000Z info     event file=a.intent reason="no \\"label\\"" name="银行" items=3'
        ' trace=["a.py:1 f"]\n'
    )


def test_without_heed_serve_records_go_to_standard_error_past_replaced_streams(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    logs.configure("gateway", "info", "json", tmp_path)
    monkeypatch.setattr("sys.stderr", None)
    structlog.get_logger().info("event", once="key", items=2)
    record = json.loads(capfd.readouterr().err)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record.pop("time"))
    assert record == {"level": "info", "event": "event", "process": "gateway", "pid": os.getpid(), "items": 2}


def test_less_severe_events_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("gateway", "warning")
    structlog.get_logger().info("event")
    assert capfd.readouterr().err == ""


def _fail_with_a_cause(text: str) -> None:
    try:
        raise KeyError(text)
    except KeyError as cause:
        raise ValueError(text) from cause


def test_a_fault_is_logged_with_its_trace_its_cause_and_its_request_but_without_a_message(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logs.configure("gateway", "error", "json")
    logs.REQUEST_ID.set("r-1")
    with pytest.raises(ValueError, match="text") as caught:
        _fail_with_a_cause("the caller's text")
    assert isinstance(from_unknown(caught.value), Problem)
    line = capfd.readouterr().err
    record = json.loads(line)
    assert (record["request_id"], record["error"], record["level"]) == ("r-1", "ValueError", "error")
    assert "test_logs.py" in record["trace"][-1]
    assert record["caused_by"][0].startswith("KeyError at ")
    assert "caller" not in line


def test_the_end_of_a_thread_is_logged(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("gateway", "error", "json")
    thread = threading.Thread(target={}.pop, args=("the caller's text",), name="worker")
    thread.start()
    thread.join()
    line = capfd.readouterr().err
    record = json.loads(line)
    assert (record["event"], record["thread"], record["error"]) == ("thread ended", "worker", "KeyError")
    assert "caller" not in line


def test_a_full_pipe_blocks_nobody_and_lost_lines_are_counted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / logs.PIPE)
    pipe = os.open(tmp_path / logs.PIPE, os.O_RDWR | os.O_NONBLOCK)
    try:
        logs.configure("gateway", "info", "json", tmp_path)
        log = structlog.get_logger()
        for size in (4096, 1):
            with suppress(BlockingIOError):
                while True:
                    os.write(pipe, b"x" * size)
        log.info("event")
        log.info("event")
        with suppress(BlockingIOError):
            while True:
                os.read(pipe, 2**20)
        log.info("next")
        lost, following = map(json.loads, os.read(pipe, 2**20).splitlines())
        assert (lost["event"], lost["lines"], lost["level"]) == ("log lines lost", 2, "error")
        assert following["event"] == "next"
    finally:
        os.close(pipe)


@pytest.mark.parametrize(
    ("level", "access_of"), [("debug", {200, 429, 500}), ("info", {200, 429, 500}), ("error", {500})]
)
@pytest.mark.parametrize("form", ["json", "console"])
def test_faults_are_in_the_access_log_at_each_level(
    level: str, access_of: set[int], form: LogFormat, capfd: pytest.CaptureFixture[str]
) -> None:
    access = AccessLog(logs.configure("gateway", level, form))
    for status in (200, 429, 500):
        access.write(AccessRecord("id-1", "POST", "/v1/sentiment", status, 0.0034567, 2, 40, 300, "code"))
    lines = capfd.readouterr().err.splitlines()
    assert {int(re.findall(r"status\W+(\d+)", line)[0]) for line in lines} == access_of
    if form == "json":
        record = json.loads(lines[-1])
        assert record.items() >= {"event": "request", "level": "error", "ms": 3.46, "items": 2, "bytes": 300}.items()
    else:
        assert lines[-1].endswith(
            "request_id=id-1 method=POST route=/v1/sentiment status=500 ms=3.46 items=2 bytes=300 bytes_in=40 code=code"
        )
