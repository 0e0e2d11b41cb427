"""The log of a real service: complete, at once, and never with a text."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.local_service import COMMAND, JSON, ONLY_SENTIMENT, Client, free_port, metric_sum
from tests.support.tiny_bundle import tiny_intent_bundle

SECRET = "Zanzibar"


class Logged:
    """A service of two gateways whose standard output is a file."""

    def __init__(self, sentiment: Path, intent: Path, folder: Path) -> None:
        self.port = free_port()
        self.data, self._output = folder / "data", folder / "output"
        self.data.mkdir()
        (self.data / "broken.head.safetensors").write_bytes(b"not a head")
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [*COMMAND, "--port", str(self.port), "--bundle", str(sentiment), "--replicas", "2"],
                stdout=output,
                env={
                    **os.environ,
                    **ONLY_SENTIMENT,
                    "HEED_INTENT_BUNDLE": str(intent),
                    "HEED_LABEL_SET": "letters",
                    "HEED_DATA_DIR": str(self.data),
                    "HEED_LOG_FORMAT": "json",
                },
            )

    def records(self, event: str) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in self._output.read_text().splitlines()]
        return [record for record in records if record["event"] == event]

    def text(self) -> str:
        return self._output.read_text()


def until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline_s = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return holds


@pytest.fixture
def logged(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    service = Logged(bundle, tiny_intent_bundle(tmp_path_factory.mktemp("intent")), tmp_path_factory.mktemp("logs"))
    try:
        assert until(lambda: bool(service.records("ready")), 300)
        yield service
    finally:
        service.process.send_signal(signal.SIGINT)
        service.process.wait(60)


def test_every_record_is_on_the_terminal_at_once(logged: Logged) -> None:
    assert {record["task"] for record in logged.records("model loaded")} == {"sentiment", "intent"}
    assert len(logged.records("gateway ready")) == 2
    (broken,) = logged.records("file cannot be used")  # two gateways have seen it
    assert broken["file"] == "broken.head.safetensors"
    with Client(logged.port) as client:
        body = json.dumps({"inputs": [{"text": f"good {SECRET}", "entity": SECRET}, "fine"]}).encode()
        for number in range(20):
            client.send("POST", "/v1/sentiment", body, {**JSON, "X-Request-ID": f"mine-{number}"})
        assert until(lambda: len(_of(logged, "mine-")) == 20, 1)
        assert all(record["items"] == 2 and record["status"] == 200 for record in _of(logged, "mine-"))

        refused = metric_sum(client, "heed_proxy_refusals_total", statuses="4xx")
        # HAProxy refuses what is no HTTP by itself.
        with socket.create_connection(("127.0.0.1", logged.port), 10) as connection:
            connection.sendall(b"no HTTP\r\n\r\n")
            assert b" 400 " in connection.recv(100)
        assert until(lambda: metric_sum(client, "heed_proxy_refusals_total", statuses="4xx") > refused, 10)

        # A gateway that is killed loses no line, and its end is logged.
        for number in range(20):
            client.send("POST", "/v1/sentiment", body, {**JSON, "X-Request-ID": f"last-{number}"})
        for record in logged.records("gateway ready"):
            os.kill(record["pid"], signal.SIGKILL)
        assert until(lambda: len(_of(logged, "last-")) == 20, 1)
        assert until(lambda: bool(logged.records("replicas in service")), 30)
        assert until(lambda: len(logged.records("gateway ready")) >= 4, 120)
    logged.process.send_signal(signal.SIGINT)
    assert logged.process.wait(60) == 0
    assert [len(logged.records(event)) for event in ("starting", "ready", "stopping")] == [1, 1, 1]
    assert logged.records("gateway stopped")
    assert sum(record.get("answers_4xx", 0) for record in logged.records("proxy refused requests")) >= 1
    assert SECRET not in logged.text()


def _of(logged: Logged, prefix: str) -> list[dict[str, Any]]:
    return [record for record in logged.records("request") if record["request_id"].startswith(prefix)]
