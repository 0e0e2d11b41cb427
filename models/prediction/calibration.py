"""Calibration: logits to probabilities, by pure functions of arrays and a calibration.

Knows no model and no file. `models.prediction.calibration_fit` fits the calibration, and the bundle stores it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.prediction.ranges import check_number

MIN_ENTROPY = 1e-3
"""The lower bound that keeps the temperature from vanishing where the model is certain."""

TEMPERATURES, POWERS, BIASES = (1e-3, 1e3), (-10.0, 10.0), (-100.0, 100.0)
"""The ranges of a scaling's numbers."""


@dataclass(frozen=True, slots=True)
class LogitScaling:
    """The scaling `logits / (temperature * entropy**power) + bias`; `bias` has a value for each label.

    `entropy` is that of the plain softmax divided by its maximum, in (0, 1]. Certain and uncertain texts rarely need
    the same factor (entropy-based temperature scaling, Balanya et al. 2024). With `power` 0 this is temperature scaling
    with biases (Guo et al. 2017).
    """

    temperature: float
    power: float
    bias: tuple[float, ...]

    def check(self) -> None:
        """Raise RangeError unless each number is in its range, where probabilities are finite for any logits."""
        check_number("temperature", self.temperature, *TEMPERATURES)
        check_number("power", self.power, *POWERS)
        for value in self.bias:
            check_number("bias", value, *BIASES)


Calibration = Mapping[str, LogitScaling]
"""A scaling for each language and, where it could be fitted, a second for texts with an entity."""


def calibration_key(language: str, has_entity: bool) -> str:
    """Return the name of a scaling in a calibration."""
    return f"{language}, entity" if has_entity else language


def find_scaling(calibration: Calibration, language: str, has_entity: bool) -> LogitScaling:
    """Return the scaling of a language for texts with an entity if there is one, else that of the language."""
    return calibration.get(calibration_key(language, has_entity)) or calibration[language]


def probabilities(logits: NDArray[np.floating], scaling: LogitScaling) -> NDArray[np.float64]:
    """Return the softmax of the scaled logits over the last axis, (..., labels)."""
    scaled = scale_logits(logits.astype(np.float64), scaling.temperature, scaling.power)
    return np.exp(log_softmax(scaled + np.asarray(scaling.bias)))


def scale_logits(logits: NDArray[np.float64], temperature: float, power: float) -> NDArray[np.float64]:
    """Return the logits scaled as in `LogitScaling`, without the bias."""
    return logits / (temperature * entropy(logits)[..., None] ** power) if power else logits / temperature


def entropy(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of the softmax divided by its maximum, at least MIN_ENTROPY: (..., labels) to (...)."""
    logs = log_softmax(logits)
    normalized = -(np.exp(logs) * logs).sum(axis=-1) / np.log(logits.shape[-1])
    return np.asarray(np.maximum(normalized, MIN_ENTROPY))


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def calibrate_logits(logits: NDArray[np.float32], scalings: Sequence[LogitScaling]) -> NDArray[np.float64]:
    """Return the probabilities (batch, labels) with a scaling for each row, NaN in rows with a logit not finite."""
    scores = np.empty(logits.shape)
    with np.errstate(invalid="ignore"):
        for scaling in set(scalings):
            rows = [row for row, row_scaling in enumerate(scalings) if row_scaling == scaling]
            scores[rows] = probabilities(logits[rows], scaling)
    scores[~np.isfinite(logits).all(axis=1)] = np.nan
    return scores
