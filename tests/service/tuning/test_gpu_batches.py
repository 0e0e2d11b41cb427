from __future__ import annotations

import pickle
from collections.abc import Set
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import load_bundle
from models.runtime.cuda import CudaRuntime, batch_shapes
from models.text.encoding import Batch
from service.cluster.local import build_environment
from service.inference.batch_policy import BatchLimits
from service.settings import load_settings
from service.tuning.gpu_batches import LENGTHS, MAX_TOKENS, PADDING, measure_batch_limits, tokens_per_s, warm_up
from tests.support.tiny_bundle import tiny_bundle

LIMITS = BatchLimits(batch_tokens=2048, batch_items=16, queue_tokens=65_536)
BOTH = {"batch_tokens", "batch_items"}


class Device:
    """A runtime that records shapes. Its clock advances by a time per batch and a time per token."""

    def __init__(self, batch_s: float, token_s: float) -> None:
        self.batch_s, self.token_s, self.now_s = batch_s, token_s, 0.0
        self.shapes: list[tuple[int, ...]] = []

    def clock(self) -> float:
        return self.now_s

    def measure(self, unset: Set[str]) -> BatchLimits:
        return measure_batch_limits(self, LIMITS, unset, 512, clock=self.clock)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        assert batch.mask.all()
        self.shapes.append(batch.ids.shape)
        self.now_s += self.batch_s + self.token_s * batch.ids.size
        return np.zeros((len(batch.ids), 3), np.float32)


def test_the_rate_averages_batches_of_each_length() -> None:
    device = Device(0.01, 1e-5)
    assert tokens_per_s(device, 4096, device.clock) == pytest.approx(4096 / (0.01 + 0.04096))
    assert set(device.shapes) == {(4096 // length, length) for length in LENGTHS}


@pytest.mark.parametrize(("batch_s", "expected"), [(1e-7, 2048), (0.002, 16_384), (10.0, MAX_TOKENS)])
def test_the_budget_grows_while_larger_batches_are_faster(batch_s: float, expected: int) -> None:
    """With 2 ms per batch and 4 microseconds per token, 32,768 tokens are faster by 1.5 %, which may be noise."""
    assert Device(batch_s, 4e-6).measure(BOTH).batch_tokens == expected


def test_limits_that_are_set_stay() -> None:
    device = Device(0.01, 1e-6)
    assert device.measure(set()) == replace(LIMITS, padding=PADDING)
    measured = device.measure({"batch_tokens"})
    assert measured.batch_tokens > LIMITS.batch_tokens
    assert (measured.batch_items, measured.queue_tokens) == (16, 65_536)
    assert device.measure({"batch_items"}).batch_items == 2048 // 16


def test_every_shape_is_run_once_the_largest_first() -> None:
    device = Device(0.01, 1e-6)
    warm_up(device, LIMITS, 500)
    assert device.shapes == list(batch_shapes(500, LIMITS.batch_tokens, LIMITS.batch_items))


@pytest.mark.slow
def test_a_real_runtime_can_be_measured(tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle(tmp_path))
    runtime = CudaRuntime(bundle.graph, device="cpu")
    limits = measure_batch_limits(runtime, LIMITS, BOTH, bundle.max_tokens, budgets=(2048, 4096))
    assert limits.batch_tokens in (2048, 4096)
    assert limits.batch_items == limits.batch_tokens // 16


def test_only_unset_limits_on_a_gpu_are_measured(tmp_path: Path) -> None:
    assert load_settings(device="cpu").to_measure == set()
    assert load_settings(device="cuda", batch_tokens=4096).to_measure == {"batch_items"}
    unset = load_settings(device="cuda")
    assert pickle.loads(pickle.dumps(unset)).to_measure == BOTH  # as Serve hands it to a replica
    inherited = build_environment(unset, tmp_path, {})
    assert not {"HEED_BATCH_TOKENS", "HEED_BATCH_ITEMS"} & set(inherited)
    assert build_environment(load_settings(device="cuda", batch_items=64), tmp_path, {})["HEED_BATCH_ITEMS"] == "64"
