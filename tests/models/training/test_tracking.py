"""Where the figures of a training run go."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from models.training.classification import train_classifier
from models.training.tracking import (
    TENSORBOARD,
    WANDB_ID,
    CombinedTracker,
    TensorBoardTracker,
    WandbTracker,
    make_tracker,
    recording,
)
from models.training.trainer import Trainer
from tests.models.conftest import CONFIG


class Record:
    """A tracker that remembers what it is told."""

    def __init__(self) -> None:
        self.started: list[tuple[Path, int, int]] = []
        self.figures: dict[int, dict[str, float]] = {}
        self.finished = 0

    def start(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        self.started.append((run, settings["seed"], step))

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.figures[step] = dict(figures)

    def finish(self) -> None:
        self.finished += 1


def scalars(folder: Path, name: str) -> dict[int, float]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


@pytest.mark.slow
def test_a_run_records_every_step_and_its_validation_also_after_a_kill(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, train_step = replace(CONFIG, epochs=1), Trainer.train_step

    def killed_step(self: Trainer, rows: list[object]) -> float:
        if self.step == 7:
            raise KeyboardInterrupt
        return train_step(self, rows)

    first, second = Record(), Record()
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "train_step", killed_step)
        with pytest.raises(KeyboardInterrupt):
            train_classifier(config, str(base), data, tmp_path, tracker=first)
    train_classifier(config, str(base), data, tmp_path, tracker=second)
    assert (first.started, first.finished) == ([(tmp_path, config.seed, 0)], 1)
    assert (second.started, second.finished) == ([(tmp_path, config.seed, 5)], 1)
    assert list(first.figures) == list(range(1, 8))
    steps = list(second.figures)
    assert steps == list(range(6, steps[-1] + 1))
    assert second.figures[6]["loss"] == pytest.approx(first.figures[6]["loss"])
    assert all(set(figures) >= {"loss", "learning_rate"} for figures in second.figures.values())
    assert "macro_f1/news" in second.figures[steps[-1]]
    assert not (tmp_path / TENSORBOARD).exists()


def test_tensorboard_files_hold_the_figures(tmp_path: Path) -> None:
    with recording(TensorBoardTracker(), tmp_path, {}, 0):
        pass
    tracker = TensorBoardTracker()
    with recording(tracker, tmp_path, {"seed": 1}, 0):
        tracker.log({"loss": 0.5}, 1)
        tracker.log({"loss": 0.25}, 2)
    assert scalars(tmp_path / TENSORBOARD, "loss") == {1: 0.5, 2: 0.25}


def test_a_run_that_fails_is_finished_everywhere() -> None:
    records = Record(), Record()

    def fail() -> None:
        with recording(CombinedTracker(*records), Path("run"), {"seed": 3}, 4):
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert [(record.started, record.finished) for record in records] == [([(Path("run"), 3, 4)], 1)] * 2


def test_wandb_gets_the_figures_beside_tensorboard_and_a_resumed_run_keeps_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    logged: list[dict[str, float]] = []
    run = SimpleNamespace(define_metric=lambda *_, **__: None, log=logged.append, finish=lambda: None)
    module = ModuleType("wandb")

    def init(**options: Any) -> SimpleNamespace:
        begun.append(options)
        return run

    vars(module).update(init=init, Settings=dict, Error=type("Error", (Exception,), {}))
    monkeypatch.setitem(sys.modules, "wandb", module)
    for step in (0, 1):
        tracker = make_tracker(["wandb"])
        with recording(tracker, tmp_path, {"seed": 7}, step):
            tracker.log({"loss": 0.5}, step + 1)
    assert logged == [{"loss": 0.5, "step": 1}, {"loss": 0.5, "step": 2}]
    assert [options["config"] for options in begun] == [{"seed": 7}] * 2
    assert begun[0]["id"] == begun[1]["id"] == (tmp_path / WANDB_ID).read_text()
    assert begun[1]["resume"] == "allow"
    assert scalars(tmp_path / TENSORBOARD, "loss") == {1: 0.5, 2: 0.5}


def test_a_refusal_of_wandb_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("wandb")
    error = type("Error", (Exception,), {})

    def init(**_: object) -> None:
        raise error("no login")

    vars(module).update(init=init, Settings=dict, Error=error)
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(ValueError, match=r"no login.*WANDB_MODE=offline"):
        WandbTracker().start(tmp_path, {}, 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_works_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs the extra `track`, which is too large for the environment of the tests."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = WandbTracker()
    with recording(tracker, tmp_path, {"seed": 7}, 0):
        tracker.log({"loss": 0.515625}, 1)
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert (tmp_path / WANDB_ID).read_text() in record.name
    assert b"0.515625" in record.read_bytes()
