"""Trackers: where the figures of a training run go, step by step.

TensorBoard files are always written. Weights & Biases is optional, and its package is imported only when it is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import uuid4

from torch.utils.tensorboard import SummaryWriter

TENSORBOARD, WANDB_ID = "tensorboard", "wandb-run-id.txt"
"""Names in a training folder: the TensorBoard files, and the identity of the run at Weights & Biases."""

TrackerName = Literal["wandb"]


class Tracker(Protocol):
    """A record of a run's figures."""

    def start(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        """Begin the record of the training folder `run`, or continue that of a run that resumes after `step`."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Record figures by name. Steps only rise between `start` and `finish`."""

    def finish(self) -> None:
        """Write what is left, also after a run that failed."""


@contextmanager
def recording(tracker: Tracker, run: Path, settings: Mapping[str, Any], step: int) -> Iterator[None]:
    """Start the tracker, and finish it whatever happens."""
    tracker.start(run, settings, step)
    try:
        yield
    finally:
        tracker.finish()


class TensorBoardTracker:
    """Record of a run in TensorBoard files in its training folder."""

    def start(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        # Figures of later steps come again.
        self._writer = SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self._writer.close()


class WandbTracker:
    """Record of a run at Weights & Biases.

    The environment variables of `wandb` apply: with `WANDB_MODE=offline` it needs no network. A run that resumes keeps
    its identity. Figures, settings and the list of installed packages are sent, and no texts.
    """

    def start(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        """Raise ValueError if the service refuses, for instance without a login."""
        import wandb

        identity = run / WANDB_ID
        if not identity.exists():
            identity.write_text(uuid4().hex, encoding="utf-8")
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "heed"),
                name=run.name,
                id=identity.read_text(encoding="utf-8").strip(),
                resume="allow",
                dir=str(run),
                config=dict(settings),
                settings=wandb.Settings(console="off", disable_code=True, disable_git=True),
            )
        except wandb.Error as error:
            raise ValueError(
                f"Weights & Biases records nothing ({error}); WANDB_MODE=offline needs no account"
            ) from error
        # A resumed run goes back to its checkpoint, and Weights & Biases drops figures of steps that it has passed.
        self._run.define_metric("*", step_metric="step")

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log({**figures, "step": step})

    def finish(self) -> None:
        self._run.finish()


class CombinedTracker:
    """Several trackers as one."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def start(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        for tracker in self._trackers:
            tracker.start(run, settings, step)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.log(figures, step)

    def finish(self) -> None:
        for tracker in self._trackers:
            tracker.finish()


def make_tracker(names: Sequence[TrackerName]) -> Tracker:
    """Return a tracker that writes TensorBoard files and records at each named place."""
    makers = {"wandb": WandbTracker}
    return CombinedTracker(TensorBoardTracker(), *(makers[name]() for name in names))
