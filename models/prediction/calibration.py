"""Logits to a prediction: pure functions of arrays and a calibration.

Knows no model and no file; the calibration is fitted by `models.prediction.calibration_fit` and carried by the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_ENTROPY = 1e-3
"""Keeps the temperature of a text the model is wholly sure of from vanishing."""


@dataclass(frozen=True, slots=True)
class LogitScaling:
    """Calibrated logits are `logits / (temperature * entropy**power) + bias`; `bias` has one value a label.

    `entropy` is that of the plain softmax over its greatest possible value, in (0, 1]: texts the model is sure of and
    texts it wavers over are seldom wrong by the same factor (Balanya et al. 2024, entropy-based temperature scaling).
    With `power` 0 it is temperature scaling with biases (Guo et al. 2017).
    """

    temperature: float
    power: float
    bias: tuple[float, ...]


Calibration = Mapping[str, LogitScaling]
"""One scaling for each language, and where it could be fitted another for texts that are asked about an entity."""


def calibration_key(language: str, targeted: bool) -> str:
    """The name of a scaling in a calibration."""
    return f"{language}, entity" if targeted else language


def find_scaling(calibration: Calibration, language: str, targeted: bool) -> LogitScaling:
    return calibration.get(calibration_key(language, targeted)) or calibration[language]


def probabilities(logits: NDArray[np.floating], scaling: LogitScaling) -> NDArray[np.float64]:
    """Softmax over the last axis of the scaled logits, (..., labels)."""
    scaled = scale_logits(logits.astype(np.float64), scaling.temperature, scaling.power)
    return np.exp(log_softmax(scaled + np.asarray(scaling.bias)))


def scale_logits(logits: NDArray[np.float64], temperature: float, power: float) -> NDArray[np.float64]:
    """Logits as `Scaling` scales them, without its bias."""
    return logits / (temperature * entropy(logits)[..., None] ** power) if power else logits / temperature


def entropy(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the softmax, (..., labels) to (...): its share of the greatest possible, at least LEAST_ENTROPY."""
    logs = log_softmax(logits)
    own = -(np.exp(logs) * logs).sum(axis=-1) / np.log(logits.shape[-1])
    return np.asarray(np.maximum(own, MIN_ENTROPY))


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def calibrate_logits(logits: NDArray[np.float32], scalings: Sequence[LogitScaling]) -> NDArray[np.float64]:
    """Probabilities (batch, labels), each row by its own scaling; NaN where a logit is not finite."""
    scores = np.empty(logits.shape)
    with np.errstate(invalid="ignore"):
        for scaling in set(scalings):
            rows = [row for row, own in enumerate(scalings) if own == scaling]
            scores[rows] = probabilities(logits[rows], scaling)
    scores[~np.isfinite(logits).all(axis=1)] = np.nan
    return scores
