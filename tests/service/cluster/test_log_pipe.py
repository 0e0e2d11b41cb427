from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from service.cluster.log_pipe import LogPipe
from service.telemetry import logs

pytestmark = pytest.mark.usefixtures("restored_logs")

KILLED = """
import os, signal, sys
from pathlib import Path
import structlog
from service.telemetry import logs
logs.configure("gateway", "info", "json", Path(sys.argv[1]))
for number in range(500):
    structlog.get_logger().info("event", number=number)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def target(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "output", os.O_WRONLY | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def lines_of(folder: Path) -> list[str]:
    return (folder / "output").read_text().splitlines()


def test_a_killed_process_loses_no_line(tmp_path: Path, target: int) -> None:
    pipe = LogPipe(tmp_path, target)
    pipe.start()
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    pipe.stop()
    assert killed.returncode == -9
    assert [f'"number": {number}' in line for number, line in enumerate(lines_of(tmp_path))] == [True] * 500


def test_lines_appear_while_processes_run_and_before_the_copying_starts(tmp_path: Path, target: int) -> None:
    pipe = LogPipe(tmp_path, target)
    logs.configure("gateway", "info", "console", tmp_path)
    structlog.get_logger().info("early")
    pipe.start()
    structlog.get_logger().info("late")
    deadline_s = time.monotonic() + 30
    while len(lines_of(tmp_path)) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert [line.split()[2] for line in lines_of(tmp_path)] == ["early", "late"]
    pipe.stop()


def test_what_several_processes_report_is_shown_once(tmp_path: Path, target: int) -> None:
    pipe = LogPipe(tmp_path, target)
    for process in ("gateway-1", "gateway-2"):
        logs.configure(process, "info", "console", tmp_path)
        structlog.get_logger().error("file cannot be used", once=("a", (1, 2)))
        structlog.get_logger().error("file cannot be used", once=("b", (1, 2)))
        structlog.get_logger().info("gateway ready")
    pipe.stop()
    lines = lines_of(tmp_path)
    assert [("gateway-1" in line, "cannot" in line) for line in lines] == [
        (True, True), (True, True), (True, False), (False, False)
    ]  # fmt: skip
    assert logs.ONCE not in "".join(lines)


def test_a_value_cannot_pass_for_a_key(tmp_path: Path, target: int) -> None:
    pipe = LogPipe(tmp_path, target)
    logs.configure("gateway", "info", "console", tmp_path)
    for _ in range(2):
        structlog.get_logger().info("event", value=f"\n{logs.ONCE}key{logs.ONCE}forged")
    pipe.stop()
    assert len(lines_of(tmp_path)) == 2


def test_without_a_reader_of_the_output_the_pipe_is_emptied(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    pipe = LogPipe(tmp_path, writer)
    output = logs.configure("gateway", "info", "console", tmp_path)
    for _ in range(20):
        for _ in range(100):
            structlog.get_logger().info("event", value="x" * 900)
        pipe._copy()
    os.close(writer)
    assert output.writer.dropped == 0
