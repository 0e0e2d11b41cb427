"""How far a graph's answers are from the trained network's, and how far is too far.

Knows runtimes and their answers, nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.evaluation.classification import report_dataset
from models.prediction.calibration import Calibration, LogitScaling, probabilities
from models.prediction.calibration_fit import ValidationPredictions
from models.runtime.protocol import Runtime
from models.tasks import Task
from models.text.encoding import Encoding, collate

MAX_BATCH_CHANGE = 1e-3
BATCH = 32


class ParityError(Exception):
    """The graph's answers differ too much from the trained network's; the message says by how much."""


@dataclass(frozen=True, slots=True)
class Parity:
    """`agreement`: share of all rows with the same label; `f1_loss`: the worst macro-F1 loss of a data set;
    `batch_change`: the largest change of a probability between a text alone and in a batch of 32."""

    agreement: float
    f1_loss: float
    batch_change: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of what may be shipped: the least `agreement` and the largest `f1_loss`."""

    agreement: float
    f1_loss: float


ROUNDED = Bounds(0.985, 0.003)
HALVED = Bounds(0.995, 1.0)
"""Nothing is rounded to steps there, so that labels alone tell; one other label in a small set is more F1 than that."""


def measure_parity(
    truth: Sequence[ValidationPredictions], answers: Sequence[ValidationPredictions], batch_change: float, task: Task
) -> Parity:
    """Both as trained, before calibration."""
    pairs = list(zip(truth, answers, strict=True))
    width = len(task.labels)
    same = np.concatenate([a.logits.argmax(axis=1) == b.logits.argmax(axis=1) for a, b in pairs])
    losses = [
        report_dataset(a, plain(a, width), task).macro_f1 - report_dataset(b, plain(b, width), task).macro_f1
        for a, b in pairs
    ]
    return Parity(float(same.mean()), max(losses), batch_change)


def unscaled(width: int) -> LogitScaling:
    return LogitScaling(1.0, 0.0, (0.0,) * width)


def plain(answers: ValidationPredictions, width: int) -> Calibration:
    return {str(language): unscaled(width) for language in set(answers.languages)}


def batch_change(runtime: Runtime, tokens: Sequence[Encoding], pad: int) -> float:
    """The largest change of a probability between each text alone and among the 31 that follow it in `tokens`."""
    worst = 0.0
    for start in range(0, len(tokens), BATCH):
        batch = tokens[start : start + BATCH]
        together = runtime.run(collate(batch, pad))
        alone = np.concatenate([runtime.run(collate([item], pad)) for item in batch])
        scaling = unscaled(together.shape[1])
        worst = max(worst, float(np.abs(probabilities(together, scaling) - probabilities(alone, scaling)).max()))
    return worst


def check_parity(name: str, found: Parity, bounds: Bounds) -> None:
    """Raises DriftError when the graph `name` must not be shipped."""
    if found.agreement < bounds.agreement:
        raise ParityError(f"{name}: labels agree with torch on {found.agreement:.4f} of rows, below {bounds.agreement}")
    if found.f1_loss > bounds.f1_loss:
        raise ParityError(f"{name}: a data set loses {found.f1_loss:.4f} macro-F1 against torch, over {bounds.f1_loss}")
    if found.batch_change > MAX_BATCH_CHANGE:
        raise ParityError(
            f"{name}: a score changes with its batch by {found.batch_change:.5f}, over {MAX_BATCH_CHANGE}"
        )
