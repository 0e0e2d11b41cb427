"""Logits to a prediction: pure functions of arrays and a calibration.

Knows no model and no file; the calibration is fitted by `models.calibrate` and carried by the bundle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.tasks import SENTIMENT


@dataclass(frozen=True, slots=True)
class Scaling:
    """Calibrated logits are `logits / temperature + bias`; `bias` has one value a label."""

    temperature: float
    bias: tuple[float, ...]


Calibration = Mapping[str, Scaling]
"""One scaling for each language."""


@dataclass(frozen=True, slots=True)
class Sentiment:
    """`scores` are calibrated probabilities by label and sum to 1; `polarity` is P(positive) - P(negative)."""

    label: str
    scores: dict[str, float]
    polarity: float


def probabilities(logits: NDArray[np.floating], scaling: Scaling) -> NDArray[np.float64]:
    """Softmax over the last axis of the scaled logits, (..., labels)."""
    scaled = logits.astype(np.float64) / scaling.temperature + np.asarray(scaling.bias)
    weights = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def sentiment(logits: NDArray[np.float32], calibration: Calibration, language: str) -> Sentiment:
    """The answer for one text's logits, (labels,)."""
    values = probabilities(logits, calibration[language]).tolist()
    scores = dict(zip(SENTIMENT.labels, values, strict=True))
    return Sentiment(max(scores, key=scores.__getitem__), scores, scores["positive"] - scores["negative"])
