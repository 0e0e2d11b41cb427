from __future__ import annotations

import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import load_bundle
from models.runtime.cuda import CudaRuntime, batch_shapes
from models.text.encoding import Batch
from service import settings
from service.cluster.local import environment
from service.inference.batch_policy import BatchLimits
from service.tuning import gpu_batches as budget
from service.tuning.gpu_batches import LENGTHS, MAX_TOKENS, PADDING, measure_batch_limits, tokens_per_s, warm_up
from tests.support.tiny_bundle import tiny_bundle

GIVEN = BatchLimits(batch_tokens=2048, batch_items=16, queue_tokens=65_536)
BOTH = {"batch_tokens", "batch_items"}


class Device:
    """Counts its batches and takes, on a clock of its own, a while for each and a while for every token."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, start_s: float, token_s: float) -> None:
        self.start_s, self.token_s, self.now_s = start_s, token_s, 0.0
        self.shapes: list[tuple[int, ...]] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now_s)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        assert batch.mask.all()
        self.shapes.append(batch.ids.shape)
        self.now_s += self.start_s + self.token_s * batch.ids.size
        return np.zeros((len(batch.ids), 3), np.float32)


def test_the_rate_is_that_of_as_many_tokens_in_texts_of_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, 0.01, 1e-5)
    assert tokens_per_s(device, 4096) == pytest.approx(4096 / (0.01 + 0.04096))
    assert set(device.shapes) == {(4096 // length, length) for length in LENGTHS}


@pytest.mark.parametrize(("start_s", "expected"), [(1e-7, 2048), (0.002, 16_384), (10.0, MAX_TOKENS)])
def test_a_budget_grows_while_larger_batches_pay(
    monkeypatch: pytest.MonkeyPatch, start_s: float, expected: int
) -> None:
    """2 ms for a start, 4 microseconds for a token: 32,768 tokens are faster by 1.5 %, which may be noise."""
    device = Device(monkeypatch, start_s, 4e-6)
    assert measure_batch_limits(device, GIVEN, BOTH, 512).batch_tokens == expected


def test_what_is_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, 0.01, 1e-6)
    assert measure_batch_limits(device, GIVEN, set(), 512) == replace(GIVEN, padding=PADDING)
    measured = measure_batch_limits(device, GIVEN, {"batch_tokens"}, 512)
    assert measured.batch_tokens > GIVEN.batch_tokens
    assert (measured.batch_items, measured.queue_tokens) == (16, 65_536)
    assert measure_batch_limits(device, GIVEN, {"batch_items"}, 512).batch_items == 2048 // 16


def test_every_shape_is_run_once_the_largest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, 0.01, 1e-6)
    warm_up(device, GIVEN, 500)
    assert device.shapes == list(batch_shapes(500, GIVEN.batch_tokens, GIVEN.batch_items))


def test_it_measures_a_real_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(tiny_bundle(tmp_path))
    monkeypatch.setattr(budget, "MAX_TOKENS", 4096)
    monkeypatch.setattr(budget, "_SECONDS", 0.001)
    found = measure_batch_limits(CudaRuntime(bundle.graph, device="cpu"), GIVEN, BOTH, bundle.max_tokens)
    assert found.batch_tokens in (2048, 4096)
    assert found.batch_items == found.batch_tokens // 16


def test_only_on_a_gpu_and_only_what_is_not_set_is_measured(tmp_path: Path) -> None:
    assert settings.load_settings(device="cpu").to_measure == set()
    assert settings.load_settings(device="cuda", batch_tokens=4096).to_measure == {"batch_items"}
    unset = settings.load_settings(device="cuda")
    assert pickle.loads(pickle.dumps(unset)).to_measure == BOTH  # as Serve hands it to a replica
    inherited = environment(unset, tmp_path, {})
    assert not {"HEED_BATCH_TOKENS", "HEED_BATCH_ITEMS"} & set(inherited)
    assert environment(settings.load_settings(device="cuda", batch_items=64), tmp_path, {})["HEED_BATCH_ITEMS"] == "64"
