"""Parity: how close a graph's answers are to the trained network's, and how close they must be.

Knows runtimes and their answers, but no files.
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

MIN_F1_ROWS = 700
"""Rows of a data set whose macro-F1 is compared. Below, one changed label costs more than 0.003 of it."""


class ParityError(Exception):
    """The graph's answers differ too much from the trained network's. The message says by how much."""


@dataclass(frozen=True, slots=True)
class Parity:
    """A graph compared with the trained network.

    `agreement` is the share of rows with the same label. `f1_loss` is the largest macro-F1 loss of a data set of
    `MIN_F1_ROWS` rows or more, or of any if all are smaller. `batch_change` is the largest change of a probability
    between a text alone and in a batch of 32.
    """

    agreement: float
    f1_loss: float
    batch_change: float


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits for a bundle: the least `agreement` and the largest `f1_loss`."""

    agreement: float
    f1_loss: float


INT8_BOUNDS = Bounds(0.985, 0.003)
FP16_BOUNDS = Bounds(0.995, 1.0)
"""fp16 does not round to steps, so labels are enough. In a small set, one changed label costs a lot of F1."""


def measure_parity(
    truth: Sequence[ValidationPredictions], answers: Sequence[ValidationPredictions], batch_change: float, task: Task
) -> Parity:
    """Return the parity of uncalibrated answers with the trained network's."""
    pairs = list(zip(truth, answers, strict=True))
    width = len(task.labels)
    same = np.concatenate([a.logits.argmax(axis=1) == b.logits.argmax(axis=1) for a, b in pairs])
    losses = [
        report_dataset(a, uncalibrated(a, width), task).macro_f1
        - report_dataset(b, uncalibrated(b, width), task).macro_f1
        for a, b in [pair for pair in pairs if len(pair[0].labels) >= MIN_F1_ROWS] or pairs
    ]
    return Parity(float(same.mean()), max(losses), batch_change)


def unscaled(width: int) -> LogitScaling:
    """Return a scaling that leaves logits as they are."""
    return LogitScaling(1.0, 0.0, (0.0,) * width)


def uncalibrated(answers: ValidationPredictions, width: int) -> Calibration:
    """Return a calibration that leaves logits as they are, for the languages of the answers."""
    return {str(language): unscaled(width) for language in set(answers.languages)}


def largest_batch_change(runtime: Runtime, tokens: Sequence[Encoding], pad: int) -> float:
    """Return the largest change of a probability between a text alone and in its batch of 32."""
    largest = 0.0
    for start in range(0, len(tokens), BATCH):
        batch = tokens[start : start + BATCH]
        together = runtime.run(collate(batch, pad))
        alone = np.concatenate([runtime.run(collate([item], pad)) for item in batch])
        scaling = unscaled(together.shape[1])
        largest = max(largest, float(np.abs(probabilities(together, scaling) - probabilities(alone, scaling)).max()))
    return largest


def check_parity(name: str, parity: Parity, bounds: Bounds) -> None:
    """Raise ParityError if the graph `name` must not be shipped."""
    if parity.agreement < bounds.agreement:
        raise ParityError(
            f"{name}: labels agree with torch on {parity.agreement:.4f} of rows, below {bounds.agreement}"
        )
    if parity.f1_loss > bounds.f1_loss:
        raise ParityError(
            f"{name}: a data set loses {parity.f1_loss:.4f} macro-F1 against torch, over {bounds.f1_loss}"
        )
    if parity.batch_change > MAX_BATCH_CHANGE:
        raise ParityError(
            f"{name}: a score changes with its batch by {parity.batch_change:.5f}, over {MAX_BATCH_CHANGE}"
        )
