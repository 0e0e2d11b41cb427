from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import structlog

from service.errors import from_unknown
from service.telemetry import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def test_an_event_is_one_line_whatever_its_values_contain(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("info")
    structlog.get_logger().info("event", value='\r\n\x1b[31m{"event":"forged"}')
    (line,) = capsys.readouterr().err.splitlines()
    assert "\x1b" not in line
    assert json.loads(line)["event"] == "event"


def test_less_severe_events_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure("warning")
    structlog.get_logger().info("event")
    assert capsys.readouterr().err == ""


def test_an_unknown_error_is_logged_with_its_location_but_without_its_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logs.configure("info")
    try:
        raise ValueError("the caller's text")
    except ValueError as error:
        from_unknown(error)
    line = capsys.readouterr().err
    assert "ValueError" in line
    assert "test_logs.py" in line
    assert "caller" not in line
