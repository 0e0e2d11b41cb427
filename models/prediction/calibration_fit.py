"""Calibration: for each language, the scaling of the logits under which probabilities mean what they say.

Fitted on validation answers of the graph that serves. Knows logits and labels, no texts and no networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from models.prediction.calibration import (
    Calibration,
    LogitScaling,
    calibrate_logits,
    calibration_key,
    entropy,
    find_scaling,
    log_softmax,
)

BINS = 15
DRAWS = 200
"""Of right and wrong answers, for the error that chance alone leaves."""


@dataclass(frozen=True, slots=True)
class ValidationPredictions:
    """One validation set as a model answered it.

    `logits` (rows, labels) fp32; `labels` (rows,) indices; `among` the indices of the labels that the set has;
    `languages` (rows,) the language each text was served in, `targeted` (rows,) whether it was asked about an entity.
    """

    dataset: str
    language: str
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    label_choices: tuple[int, ...]
    languages: NDArray[np.str_]
    has_entity: NDArray[np.bool_]

    @property
    def calibration_key(self) -> str:
        return calibration_key(self.language, bool(self.has_entity.all()))


def fit_calibration(answers: Sequence[ValidationPredictions]) -> Calibration:
    """For each language, and apart for sets about entities, the scaling of the least log loss, by sets of equal weight.

    A set that lacks a label is taken over the labels it has, as in training.
    """
    questions = sorted({answer.calibration_key for answer in answers})
    return {question: fit_scaling([a for a in answers if a.calibration_key == question]) for question in questions}


def fit_scaling(answers: Sequence[ValidationPredictions]) -> LogitScaling:
    logits = [answer.logits.astype(np.float64) for answer in answers]
    entropies = [entropy(rows)[:, None] for rows in logits]
    places = [np.searchsorted(answer.label_choices, answer.labels) for answer in answers]

    def loss(parameters: NDArray[np.float64]) -> float:
        log_temperature, power, bias = parameters[0], parameters[1], np.append(parameters[2:], 0.0)
        total = 0.0
        for answer, plain, own, place in zip(answers, logits, entropies, places, strict=True):
            scores = log_softmax((plain / (np.exp(log_temperature) * own**power) + bias)[:, answer.label_choices])
            total -= float(np.mean(scores[np.arange(len(place)), place]))
        # A slight pull to plain temperature scaling: a set of a thousand rows cannot prove a small bias.
        return total / len(answers) + 1e-3 * float(np.sum(parameters[1:] ** 2))

    best = minimize(loss, np.zeros(answers[0].logits.shape[1] + 1), method="BFGS")
    temperature, power, *bias = (round(float(value), 6) for value in (np.exp(best.x[0]), *best.x[1:], 0.0))
    return LogitScaling(temperature, power, tuple(bias))


def cross_fitted_errors(answers: Sequence[ValidationPredictions]) -> dict[str, float]:
    """The calibration error of each set when every half of it is scaled by what the other halves taught."""
    halves = [[select_fold(answer, start) for answer in answers] for start in (0, 1)]
    fitted = [fit_calibration(half) for half in halves]
    errors = {}
    for first, second in zip(*halves, strict=True):
        scores = np.concatenate([calibrate(first, fitted[1]), calibrate(second, fitted[0])])
        errors[first.dataset] = expected_calibration_error(
            *chosen(scores, np.concatenate([first.labels, second.labels]))
        )
    return errors


def select_fold(answers: ValidationPredictions, start: int) -> ValidationPredictions:
    """Every second row, from `start`."""
    return replace(
        answers,
        logits=answers.logits[start::2],
        labels=answers.labels[start::2],
        languages=answers.languages[start::2],
        has_entity=answers.has_entity[start::2],
    )


def calibrate(answers: ValidationPredictions, calibration: Calibration) -> NDArray[np.float64]:
    """Probabilities (rows, labels), each row scaled as its text is when it is served."""
    asked = zip(answers.languages, answers.has_entity, strict=True)
    return calibrate_logits(
        answers.logits, [find_scaling(calibration, str(language), bool(own)) for language, own in asked]
    )


def expected_calibration_error(confidence: NDArray[np.floating], right: NDArray[np.bool_]) -> float:
    """Expected calibration error of (rows,) confidences and whether each was right, 15 bins of equal width.

    Naeini et al. 2015.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums, hits = (np.bincount(bins, weights, BINS) for weights in (confidence, right.astype(float)))
    return float(np.abs(sums - hits).sum() / len(bins))


def chosen(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Of (rows, labels) the confidence in each row's likeliest label, (rows,), and whether it is the right one."""
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def expected_error_by_chance(confidence: NDArray[np.float64]) -> float:
    """What that error comes to, in the mean, where every answer is right exactly as often as its confidence says.

    No calibration can be seen to be better than that on so few rows (consistency resampling, Broecker and Smith 2007).
    """
    chance = np.random.default_rng(0)
    draws = (chance.random(len(confidence)) < confidence for _ in range(DRAWS))
    return float(np.mean([expected_calibration_error(confidence, right) for right in draws]))
