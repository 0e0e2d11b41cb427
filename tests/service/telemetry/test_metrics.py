"""Metrics of several real processes, read through any of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from service.telemetry.batch_report import BatchReport
from service.telemetry.metrics import Metrics, MetricsError
from tests.support.odd_files import ODD_FILES, make_odd

REPLICA = """
import sys
from pathlib import Path
from service.telemetry.metrics import Metrics
metrics = Metrics(Path(sys.argv[1]))
task = metrics.task("sentiment")
metrics.set_bundle("sentiment", "sentiment", "1", "abc")
for line in sys.stdin:
    for _ in range(int(line)):
        metrics.record_request("/v1/sentiment", 200, 0.01)
    task.set_depth(int(line))
    print("done", flush=True)
"""


class Replica:
    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-c", REPLICA, str(directory)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self, requests: int) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{requests}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Callable[[], Replica]]:
    started: list[Replica] = []

    def start() -> Replica:
        started.append(Replica(tmp_path / "metrics"))
        return started[-1]

    yield start
    for replica in started:
        if replica.process.returncode is None:
            replica.kill()


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Return values by name and label values, read by Prometheus's parser."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


REQUESTS = ("heed_requests_total", "/v1/sentiment", "200")
DEPTH = ("heed_queue_depth", "sentiment")


def test_any_process_renders_the_sum_of_all(metrics: Metrics, replica: Callable[[], Replica]) -> None:
    metrics.record_request("/v1/sentiment", 200, 0.01)
    metrics.task("sentiment").set_depth(1)
    for requests in (20, 300):
        replica().answer(requests)
    values = samples(metrics)
    assert values[REQUESTS] == 321
    assert values[DEPTH] == 321
    assert values["heed_request_seconds_count", "/v1/sentiment"] == 321
    assert values["heed_bundle_info", "abc", "sentiment", "sentiment", "1"] == 1


def test_counts_of_a_killed_process_stay_and_its_gauges_disappear(
    metrics: Metrics, replica: Callable[[], Replica]
) -> None:
    killed, alive = replica(), replica()
    killed.answer(20)
    alive.answer(300)
    killed.kill()
    assert samples(metrics)[REQUESTS] == 320
    assert samples(metrics)[DEPTH] == 300
    alive.answer(5)
    replica().answer(7)
    assert samples(metrics)[REQUESTS] == 332
    assert samples(metrics)[DEPTH] == 12


def test_a_batch_is_recorded_once_and_each_of_its_texts_too(metrics: Metrics) -> None:
    task = metrics.task("sentiment")
    task.record_batch(BatchReport(queued_s=(0.1, 0.2, 0.3), tokens=30, padded_tokens=33, infer_s=0.5))
    task.record_tokenization(0.001)
    task.count_outcomes(["ok", "ok", "empty_text"])
    values = samples(metrics)
    sums = {name: values[f"heed_{name}_sum", "sentiment"] for name in ("batch_items", "batch_tokens", "infer_seconds")}
    assert sums == {"batch_items": 3, "batch_tokens": 33, "infer_seconds": 0.5}
    assert values["heed_queue_seconds_count", "sentiment"] == 3
    assert values["heed_queue_seconds_sum", "sentiment"] == pytest.approx(0.6)
    assert values["heed_padding_ratio_sum", "sentiment"] == pytest.approx(1.1)
    assert values["heed_tokens_total", "sentiment"] == 30
    assert values["heed_items_total", "ok", "sentiment"] == 2
    assert values["heed_items_total", "empty_text", "sentiment"] == 1


def test_only_the_owner_has_access_to_the_folder(metrics: Metrics, tmp_path: Path) -> None:
    assert (tmp_path / "metrics").stat().st_mode & 0o777 == 0o700


def test_the_error_for_an_unusable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MetricsError, match=r"^HEED_METRICS_DIR: .* cannot be used: ") as refused:
        Metrics(tmp_path / "file" / "metrics")
    assert "\n" not in str(refused.value)


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.telemetry.metrics.os.getuid", lambda: 1234567)
    with pytest.raises(MetricsError, match="belongs to another user"):
        Metrics(tmp_path)


@pytest.mark.parametrize("kind", ODD_FILES)
def test_a_thing_that_is_no_file_is_left_out_and_told_once(tmp_path: Path, kind: str) -> None:
    metrics = Metrics(tmp_path)
    metrics.record_request("/v1/sentiment", 200, 0.01)
    make_odd(kind, tmp_path / "counter_1.db")
    with capture_logs() as logs:
        for _ in range(2):
            assert b'heed_requests_total{route="/v1/sentiment",status="200"} 1.0' in metrics.render()
    assert [line["file"] for line in logs] == ["counter_1.db"]
