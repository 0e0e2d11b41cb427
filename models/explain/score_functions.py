"""The scores that can be explained, as functions of the rows that a runtime returns, and their gradients.

For texts they are the calibrated probabilities of labels. For dialogues they are the confidences of an intent head or
the score of one reply.
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
        """Map (variants, outputs) to the scores of all labels, (variants, labels)."""
        ...

    def gradient(self, rows: Rows, label: int) -> Values:
        """Return the gradient of one label's score with respect to the rows, (variants, outputs)."""
        ...


@dataclass(frozen=True, slots=True)
class LabelProbabilities:
    """The calibrated label probabilities of a classifier."""

    scaling: LogitScaling

    def __call__(self, rows: Rows) -> Values:
        return probabilities(rows, self.scaling)

    def gradient(self, rows: Rows, label: int) -> Values:
        scaling = self.scaling
        return softmax_gradient(
            rows.astype(np.float64), scaling.temperature, scaling.power, np.asarray(scaling.bias), label
        )


@dataclass(frozen=True, slots=True)
class IntentConfidences:
    """The confidences of an intent head, given vectors."""

    head: IntentHead

    def __call__(self, rows: Rows) -> Values:
        return confidences(self.head, rows)

    def gradient(self, rows: Rows, label: int) -> Values:
        head, direction = self.head, normalize_centered(rows, self.head.center).astype(np.float64)
        logits = direction @ head.weight.T + head.bias
        by_logit = softmax_gradient(logits, head.temperature, head.power, np.zeros(len(head.labels)), label)
        return normalization_gradient(by_logit @ head.weight, direction, rows - head.center)


@dataclass(frozen=True, slots=True)
class ReplyScore:
    """A ranker's score of one reply, `projected` (rank,). The reply is the only label."""

    ranker: ReplyRanker
    projected: Rows

    def __call__(self, rows: Rows) -> Values:
        return self.ranker.score_dialogues(rows, self.projected)[:, None]

    def gradient(self, rows: Rows, label: int) -> Values:
        score = self(rows)
        by_cosine = self.ranker.slope * score * (1 - score)
        dialogue = rows @ self.ranker.dialogue
        direction = l2_normalize(dialogue).astype(np.float64)
        return normalization_gradient(by_cosine * self.projected, direction, dialogue) @ self.ranker.dialogue.T


def normalization_gradient(gradient: Values, direction: Values, vector: NDArray[np.floating]) -> Values:
    """Return the gradient with respect to the vectors, (variants, width), before their normalisation to length 1.

    `gradient` is the gradient with respect to their `direction`.
    """
    across = gradient - direction * (gradient * direction).sum(axis=-1, keepdims=True)
    return np.asarray(across / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-9))


def softmax_gradient(logits: Values, temperature: float, power: float, bias: Values, label: int) -> Values:
    """Return the gradient of one label's probability with respect to the logits.

    The logits are scaled as `models.prediction.calibration.LogitScaling` describes.
    """
    scaled = scale_logits(logits, temperature, power)
    label_probabilities = np.exp(log_softmax(scaled + bias))
    by_scaled = -label_probabilities * label_probabilities[:, label : label + 1]
    by_scaled[:, label] += label_probabilities[:, label]
    uncertainty = entropy(logits)[:, None]
    gradient = by_scaled / (temperature * uncertainty**power)
    if power:
        log_probabilities = log_softmax(logits)
        mean = (np.exp(log_probabilities) * log_probabilities).sum(axis=-1, keepdims=True)
        entropy_gradient = -np.exp(log_probabilities) * (log_probabilities - mean) / np.log(logits.shape[-1])
        by_entropy = -power * (by_scaled * scaled).sum(axis=-1, keepdims=True) / uncertainty
        gradient = gradient + np.where(uncertainty > MIN_ENTROPY, by_entropy * entropy_gradient, 0)
    return np.asarray(gradient)
