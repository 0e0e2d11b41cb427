"""The answers that can be explained, as functions of the rows that a runtime gives, and how fast they change with them.

Of texts the calibrated probabilities of labels, of dialogues the confidences of a head or the score of one reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.prediction.calibration import MIN_ENTROPY, LogitScaling, entropy, log_softmax, probabilities, scale_logits
from models.prediction.intent_head import IntentHead, confidences
from models.prediction.normalize import l2_normalize, normalize_centered
from models.prediction.reply_ranker import ReplyRanker

Rows = NDArray[np.float32]
Values = NDArray[np.float64]


class ScoreFunction(Protocol):
    def __call__(self, rows: Rows) -> Values:
        """(variants, outputs) to the scores of all labels, (variants, labels)."""
        ...

    def gradient(self, rows: Rows, label: int) -> Values:
        """The gradient of one label's score by the rows, (variants, outputs)."""
        ...


@dataclass(frozen=True, slots=True)
class LabelProbabilities:
    """By a bundle with labels."""

    scaling: LogitScaling

    def __call__(self, rows: Rows) -> Values:
        return probabilities(rows, self.scaling)

    def gradient(self, rows: Rows, label: int) -> Values:
        own = self.scaling
        return softmax_slope(rows.astype(np.float64), own.temperature, own.power, np.asarray(own.bias), label)


@dataclass(frozen=True, slots=True)
class IntentConfidences:
    """By a head, on vectors."""

    head: IntentHead

    def __call__(self, rows: Rows) -> Values:
        return confidences(self.head, rows)

    def gradient(self, rows: Rows, label: int) -> Values:
        head, direction = self.head, normalize_centered(rows, self.head.center).astype(np.float64)
        logits = direction @ head.weight.T + head.bias
        by_logits = softmax_slope(logits, head.temperature, head.power, np.zeros(len(head.labels)), label)
        return along(by_logits @ head.weight, direction, rows - head.center)


@dataclass(frozen=True, slots=True)
class ReplyScore:
    """By a ranker, of one reply, `placed` (rank,): its only label."""

    ranker: ReplyRanker
    projected: Rows

    def __call__(self, rows: Rows) -> Values:
        return self.ranker.score_dialogues(rows, self.projected)[:, None]

    def gradient(self, rows: Rows, label: int) -> Values:
        score = self(rows)
        by_cosine = self.ranker.slope * score * (1 - score)
        seen = rows @ self.ranker.dialogue
        return along(by_cosine * self.projected, l2_normalize(seen).astype(np.float64), seen) @ self.ranker.dialogue.T


def along(slope: Values, direction: Values, value: NDArray[np.floating]) -> Values:
    """The gradient by a direction to that by the value, (variants, width), that was brought to length 1."""
    across = slope - direction * (slope * direction).sum(axis=-1, keepdims=True)
    return np.asarray(across / np.maximum(np.linalg.norm(value, axis=-1, keepdims=True), 1e-9))


def softmax_slope(logits: Values, temperature: float, power: float, bias: Values, label: int) -> Values:
    """The gradient of one label's probability by the logits, which `models.prediction.calibration.LogitScaling` scales."""
    scaled = scale_logits(logits, temperature, power)
    likely = np.exp(log_softmax(scaled + bias))
    by_scaled = -likely * likely[:, label : label + 1]
    by_scaled[:, label] += likely[:, label]
    uncertain = entropy(logits)[:, None]
    slope = by_scaled / (temperature * uncertain**power)
    if power:
        logs = log_softmax(logits)
        mean = (np.exp(logs) * logs).sum(axis=-1, keepdims=True)
        by_logits = -np.exp(logs) * (logs - mean) / np.log(logits.shape[-1])
        by_entropy = -power * (by_scaled * scaled).sum(axis=-1, keepdims=True) / uncertain
        slope = slope + np.where(uncertain > MIN_ENTROPY, by_entropy * by_logits, 0)
    return np.asarray(slope)
