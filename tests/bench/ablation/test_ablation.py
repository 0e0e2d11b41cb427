"""Tests that every lever can be turned off, and that a lever which is still on is not measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.bench.ablation.__main__ import require_patched
from tests.bench.ablation.lever_effects import EFFECTS
from tests.bench.ablation.levers import LEVERS, Lever
from tests.bench.ablation.patches import PATCHES, MovedError, Patch, mark
from tests.bench.ablation.report import relative_rates, render
from tests.bench.harness.processes import NotStartedError
from tests.bench.serving.contenders import INLINE, Machine
from tests.bench.serving.report import About
from tests.bench.serving.session import Measurement
from tests.bench.serving.workloads import WORKLOADS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
BY_NAME = {lever.name: lever for lever in LEVERS}
NEAR = BY_NAME["near-lengths"]
PATCHED = [(name, module, patch) for name, patches in PATCHES.items() for module, patch in patches.items()]


def run(folder: Path, *command: str, lever: Lever | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python in another folder. Like the server's processes, it learns of the lever from the environment."""
    machine = Machine(folder, Path(), 0, 2)
    environment = lever.without(folder).environment_on(machine) if lever else {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )


def effect(name: str, folder: Path, lever: Lever | None) -> object:
    done = run(folder, "-m", "tests.bench.ablation.lever_effects", name, str(folder), lever=lever)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_patch_has_a_lever_and_an_effect() -> None:
    assert set(PATCHES) == set(EFFECTS)
    assert set(PATCHES) < set(BY_NAME)


@pytest.mark.parametrize("name", PATCHES)
def test_a_lever_is_on_until_it_is_turned_off(name: str, tmp_path: Path) -> None:
    measure, on, off = EFFECTS[name]
    assert measure(tmp_path / "on") == on
    assert effect(name, tmp_path, BY_NAME[name]) == off
    for module in PATCHES[name]:
        assert list(tmp_path.glob(f"{module}-*"))


@pytest.mark.parametrize(("name", "module", "patch"), PATCHED, ids=[name for name, _, _ in PATCHED])
def test_a_missing_patch_target_is_an_error(name: str, module: str, patch: Patch) -> None:
    with pytest.raises(MovedError, match="no longer has"):
        patch(ModuleType(module))


def test_a_changed_signature_is_an_error() -> None:
    module = ModuleType("service.inference.batch_policy")
    exec("def next_batch(lengths, limits, clock): ...", vars(module))
    with pytest.raises(MovedError, match="clock"):
        PATCHES["near-lengths"]["service.inference.batch_policy"](module)


def test_a_missing_cluster_variable_is_an_error() -> None:
    module = ModuleType("service.cluster.local")
    exec("def build_environment(settings, folder, inherited): return {}", vars(module))
    PATCHES["idle-loops"]["service.cluster.local"](module)
    with pytest.raises(MovedError, match="RAY_event_stats"):
        module.build_environment(None, None, None)


def test_a_process_that_cannot_turn_the_lever_off_ends(tmp_path: Path) -> None:
    done = run(tmp_path, "-c", "print('ran')", lever=Lever("near-lengths", "", "", environment={}))
    assert done.stdout == "ran\n"
    unknown = {**NEAR.without(tmp_path).environment, "ABLATION_LEVER": "gone"}
    done = subprocess.run([sys.executable, "-c", "print('ran')"], env=unknown, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no lever is named gone" in done.stderr


def test_an_unpatched_replica_is_not_measured(tmp_path: Path) -> None:
    mark(tmp_path, "service.inference.batch_policy", 11).touch()
    require_patched(NEAR, tmp_path, [11])
    with pytest.raises(NotStartedError, match=r"\[12\]"):
        require_patched(NEAR, tmp_path, [11, 12])
    with pytest.raises(NotStartedError, match="any replica"):
        require_patched(NEAR, tmp_path, [])
    require_patched(BY_NAME["one-thread"], tmp_path, [11, 12])


def test_the_one_thread_lever_starts_a_replica_with_all_threads(tmp_path: Path) -> None:
    contender, machine = BY_NAME["one-thread"].without(tmp_path), Machine(tmp_path, tmp_path, 0, 6)
    assert contender.command_on(machine)[-2:] == ["--replicas", "1"]
    assert contender.environment_on(machine)["HEED_THREADS"] == "6"


def measured(contender: str, number: int, rate: float) -> Measurement:
    return Measurement(contender, "short-64", number, rate, rate, 10.0, 20.0, 1.0, 1e9, start_s=12.0)


def test_relative_rates_compare_the_same_round() -> None:
    workload = next(workload for workload in WORKLOADS if workload.name == "short-64")
    rounds = [measured("heed", 1, 100.0), measured(NEAR.name, 1, 80.0), measured("heed", 2, 50.0)]
    assert relative_rates(NEAR, workload, rounds) == [0.8]
    rounds += [measured(NEAR.name, 2, 45.0), measured(NEAR.name, 3, 500.0)]
    assert relative_rates(NEAR, workload, rounds) == pytest.approx([0.8, 0.9])


def test_the_report_lists_every_lever_and_every_failure() -> None:
    about = About("sentiment 1.0.0", 1, ["short: 2 texts"], {"heed": "heed 0.1.0"}, ["without batching, round 1: no"])
    written = render(
        about, LEVERS, 1, [measured("heed", 1, 100.0), measured(NEAR.name, 1, 80.0)], {"heed": [0.25], NEAR.name: [0.5]}
    )
    assert f"| {NEAR.title} | {NEAR.off} | 0.80 (0.80–0.80) | 12.0 | 0.50 |" in written
    assert f"| {INLINE.title} | {INLINE.settings} | 1 | 12.0 | 0.25 |" in written
    assert all(f"| {lever.title} | {lever.off} |" in written for lever in LEVERS)
    assert "Did not run: without batching, round 1: no" in written
