"""The tuner's choices, with made-up rates, and real measurements of the tiny bundle."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from models import bundle as bundles
from models.text.encoding import Batch as TokenBatch
from models.text.encoding import Encoding
from service.errors import InferenceFailed
from service.inference.batch_policy import BatchLimits
from service.settings import load_settings
from service.tuning.search import doubling, search_while_gaining, smallest_near_best
from service.tuning.throughput import (
    MAX_LENGTH,
    MIN_LENGTH,
    Layout,
    ReplicaProcesses,
    ThroughputError,
    measure_throughput,
    sample_lengths,
)
from service.tuning.tuner import (
    CLUSTER_BYTES,
    MIN_TOKENS,
    SERVING_BYTES,
    TunedBatch,
    TuneError,
    TuningRun,
    busy_warning,
    candidate_layouts,
    count_fitting_replicas,
    tune,
)
from tests.support.tiny_bundle import tiny_bundle

HEED = str(Path(sys.executable).parent / "heed")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def test_the_smallest_choice_within_noise_of_the_best_wins() -> None:
    assert smallest_near_best([(1, 50.0), (2, 98.0), (4, 100.0), (8, 99.0)]) == 2
    assert smallest_near_best([(1, 50.0), (2, 96.0), (4, 100.0), (8, 99.0)]) == 4
    assert smallest_near_best([(1, 100.0)]) == 1


def test_the_search_stops_after_two_trials_without_a_gain() -> None:
    rates = {1: 100.0, 2: 150.0, 4: 153.0, 8: 154.0, 16: 500.0}
    assert search_while_gaining(rates, rates.__getitem__) == [(1, 100.0), (2, 150.0), (4, 153.0), (8, 154.0)]
    assert search_while_gaining([4, 8, 16], rates.__getitem__, [(2, 150.0)]) == [(2, 150.0), (4, 153.0), (8, 154.0)]
    disturbed = {1: 100.0, 2: 50.0, 4: 150.0, 8: 200.0}
    assert search_while_gaining(disturbed, disturbed.__getitem__)[-1] == (8, 200.0)


@pytest.mark.parametrize(
    ("first", "last", "numbers"), [(1, 8, [1, 2, 4, 8]), (512, 1300, [512, 1024, 2048]), (4, 1, [4])]
)
def test_doubling_reaches_the_last_number(first: int, last: int, numbers: list[int]) -> None:
    assert doubling(first, last) == numbers


@pytest.mark.parametrize(
    ("cores", "max_replicas", "single_threaded", "multi_threaded"),
    [
        (1, 9, [], []),
        (2, 9, [(2, 1)], [(1, 2)]),
        (6, 9, [(3, 1), (6, 1)], [(3, 2), (1, 4)]),
        (8, 3, [(3, 1)], [(3, 2), (2, 4), (1, 8)]),
        (4, 1, [], [(1, 2), (1, 4)]),
    ],
)
def test_layouts_fit_the_cores_and_the_memory(
    cores: int, max_replicas: int, single_threaded: list[tuple[int, int]], multi_threaded: list[tuple[int, int]]
) -> None:
    expected = tuple([Layout(*sizes) for sizes in layouts] for layouts in (single_threaded, multi_threaded))
    assert candidate_layouts(cores, max_replicas) == expected


def test_only_replicas_that_fit_into_the_memory_count() -> None:
    pss_bytes = 200 * 2**20
    assert count_fitting_replicas(pss_bytes, CLUSTER_BYTES + 3 * (pss_bytes + SERVING_BYTES)) == 3
    assert count_fitting_replicas(pss_bytes, CLUSTER_BYTES + 3 * (pss_bytes + SERVING_BYTES) - 1) == 2
    assert count_fitting_replicas(pss_bytes, 0) == 0


def test_a_busy_machine_gives_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.2, 0.0, 0.0))
    assert "load 1.2, 2 cores" in (busy_warning(2) or "")
    assert busy_warning(8) is None


def test_sampled_lengths_are_fixed_with_many_short_and_few_long() -> None:
    lengths = sample_lengths(512)
    assert lengths == sample_lengths(512)
    assert MIN_LENGTH <= min(lengths) < 10
    assert 240 < max(lengths) <= MAX_LENGTH
    assert sum(length <= 16 for length in lengths) == pytest.approx(sum(length > 128 for length in lengths), abs=3)
    assert max(sample_lengths(100)) <= 100


class Sleeping:
    """A runtime whose batches all take the same time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.sizes: list[int] = []

    def run(self, batch: TokenBatch) -> NDArray[np.float32]:
        self.sizes.append(len(batch.ids))
        time.sleep(self.seconds)
        return np.zeros((len(batch.ids), 3), np.float32)


def tokens(*sizes: int) -> Sequence[Encoding]:
    return [Encoding(np.zeros(size, np.int64), np.zeros(size, np.int64), False, "en") for size in sizes]


@pytest.mark.slow
def test_the_rate_is_measured_with_full_batches_within_the_limits() -> None:
    runtime = Sleeping(0.02)
    rate = asyncio.run(measure_throughput(runtime, 1, tokens(10), 32, BatchLimits(80, 16, 1 << 40), 0.4))
    assert set(runtime.sizes[1:-2]) == {8}  # the last batches hold cancelled requests
    assert 0 < rate <= 80 / 0.02


@pytest.mark.slow
def test_a_batch_longer_than_the_time_is_still_measured() -> None:
    rate = asyncio.run(measure_throughput(Sleeping(0.2), 1, tokens(10), 4, BatchLimits(512, 4, 1 << 40), 0.01))
    assert 0 < rate <= 40 / 0.2


def test_a_failing_model_raises_its_error() -> None:
    class Failing(Sleeping):
        def run(self, batch: TokenBatch) -> NDArray[np.float32]:
            raise RuntimeError("secret")

    with pytest.raises(InferenceFailed):
        asyncio.run(measure_throughput(Failing(0), 1, tokens(10), 4, BatchLimits(512, 4, 1 << 40), 0.1))


@pytest.mark.slow
def test_replicas_can_be_measured_and_end_with_the_block(tiny: Path) -> None:
    before = set(psutil.Process().children())
    with ReplicaProcesses(tiny, Layout(2, 1), "cpu") as replicas:
        assert replicas.tokens_per_s(512, 4, 0.2) > 0
        assert 20e6 < replicas.pss_bytes < 1e9
        assert len(set(psutil.Process().children()) - before) == 2
    assert set(psutil.Process().children()) <= before


@pytest.mark.slow
def test_a_process_that_dies_raises_an_error(tiny: Path) -> None:
    before = set(psutil.Process().children())
    with ReplicaProcesses(tiny, Layout(1, 1), "cpu") as replicas:
        (child,) = set(psutil.Process().children()) - before
        child.kill()
        with pytest.raises(ThroughputError, match="ended unexpectedly"):
            replicas.tokens_per_s(512, 4, 0.1)


@pytest.mark.slow
def test_a_device_that_cannot_be_used_raises_an_error(tiny: Path) -> None:
    with pytest.raises(ThroughputError, match="cuda"), ReplicaProcesses(tiny, Layout(1, 1), "cuda"):
        pass


@pytest.mark.slow
def test_without_memory_for_one_replica_tuning_fails(tiny: Path) -> None:
    run = TuningRun(bundles.load_bundle(tiny), load_settings(sentiment_bundle=tiny), 0.1, lambda _: None)
    with pytest.raises(TuneError, match="MiB of memory are free"):
        tune(run, 2, CLUSTER_BYTES)


class Scaling(TuningRun):
    """A run in which twice the replicas are twice as fast and larger batches gain nothing."""

    def measure_rate(self, replicas: ReplicaProcesses, layout: Layout, batch: TunedBatch) -> float:
        return float(layout.replicas)


@pytest.mark.slow
def test_memory_bounds_the_replicas_that_would_be_faster(tiny: Path) -> None:
    lines: list[str] = []
    run = Scaling(bundles.load_bundle(tiny), load_settings(sentiment_bundle=tiny), 0.1, lines.append)
    assert tune(run, 2, 1 << 40)["replicas"] == 2
    assert lines == []
    assert tune(run, 2, CLUSTER_BYTES + int(1.5 * (SERVING_BYTES + 100e6)))["replicas"] == 1
    assert "at most 1 replicas" in lines[0]


@pytest.mark.slow
def test_the_smallest_batch_is_chosen_when_larger_ones_gain_nothing(tiny: Path) -> None:
    run = Scaling(bundles.load_bundle(tiny), load_settings(sentiment_bundle=tiny), 0.1, lambda _: None)
    assert tune(run, 1, 1 << 40) == {"replicas": 1, "threads": 1, "batch_tokens": MIN_TOKENS["cpu"], "batch_items": 1}


class Crowded(Scaling):
    """A run in which batches are faster up to 160 padded tokens and 4 texts."""

    def measure_rate(self, replicas: ReplicaProcesses, layout: Layout, batch: TunedBatch) -> float:
        return min(batch.tokens, 160) * min(batch.items, 4) / (2 if batch.tokens > 160 else 1)


@pytest.mark.slow
def test_tokens_are_chosen_before_texts(tiny: Path) -> None:
    run = Crowded(bundles.load_bundle(tiny), load_settings(sentiment_bundle=tiny), 0.1, lambda _: None)
    chosen = tune(run, 1, 1 << 40)
    assert (chosen["batch_tokens"], chosen["batch_items"]) == (160, 4)


def run_tune(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HEED, "tune", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(environment or {})},
    )


@pytest.mark.slow
def test_the_command_prints_settings_for_a_shell_and_the_rest_to_stderr(tiny: Path, tmp_path: Path) -> None:
    done = run_tune("--bundle", str(tiny), "--seconds", "0.1", "--cores", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition("=")[0] for line in lines] == [
        "HEED_REPLICAS",
        "HEED_THREADS",
        "HEED_BATCH_TOKENS",
        "HEED_BATCH_ITEMS",
    ]
    assert "tokens/s" in done.stderr
    (tmp_path / "heed.env").write_text(done.stdout)
    shell = f"set -a; . {tmp_path}/heed.env; HEED_REPLICAS=7; exec {sys.executable} -c '{READ}'"
    shell_run = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True)
    values = dict(line.split("=") for line in lines)
    assert shell_run.stdout.split() == [
        "7",
        values["HEED_THREADS"],
        values["HEED_BATCH_TOKENS"],
        values["HEED_BATCH_ITEMS"],
    ]


READ = (
    "from service.settings import load_settings; s = load_settings();"
    " print(s.replicas, s.threads, s.batch_tokens, s.batch_items)"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        (["--bundle", "/nowhere"], {}, 1, "no bundle at /nowhere"),
        (["--cores", "4096"], {}, 2, "4096 cores: this process may use"),
        ([], {"HEED_BATCH_ITEMS": "0"}, 2, "HEED_BATCH_ITEMS"),
    ],
)
def test_an_error_of_the_command_is_one_line(
    arguments: list[str], environment: dict[str, str], code: int, message: str
) -> None:
    done = run_tune(*arguments, environment=environment)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes(tiny: Path, signal_number: signal.Signals) -> None:
    process = subprocess.Popen(
        [HEED, "tune", "--bundle", str(tiny), "--seconds", "60", "--cores", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    children: list[psutil.Process] = []
    while not children:
        children = psutil.Process(process.pid).children(recursive=True)
        time.sleep(0.05)
    time.sleep(1.5)  # by now it measures, unless the machine is slow
    process.send_signal(signal_number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "heed: stopped"
    assert not [child for child in children if child.is_running()]
