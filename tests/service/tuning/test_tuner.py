"""The tuner's choices, with made-up rates."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from models import bundle as bundles
from service.settings import load_settings
from service.tuning.search import doubling, search_while_gaining, smallest_near_best
from service.tuning.throughput import Layout, ReplicaProcesses
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
