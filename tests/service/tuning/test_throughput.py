"""Throughput is measured with full batches, and processes that cannot be measured raise errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from models.text.encoding import Batch as TokenBatch
from models.text.encoding import Encoding
from service.errors import InferenceFailed
from service.inference.batch_policy import BatchLimits
from service.tuning.throughput import (
    MAX_LENGTH,
    MIN_LENGTH,
    Layout,
    ReplicaProcesses,
    ThroughputError,
    measure_throughput,
    sample_lengths,
)


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
