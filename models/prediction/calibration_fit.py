"""Fitting of calibrations, and measures of calibration error.

A calibration is fitted on validation predictions of the graph that serves, with a scaling for each language. Knows
logits and labels, no texts and no networks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from models.prediction.calibration import (
    BIASES,
    POWERS,
    TEMPERATURES,
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
"""Simulated sets of correct and wrong predictions for the error expected by chance."""


@dataclass(frozen=True, slots=True)
class ValidationPredictions:
    """A model's predictions for a validation set.

    `logits` are (rows, labels) in fp32 and `labels` (rows,) indices. `label_choices` are the indices of the labels that
    the set has. `languages` (rows,) are those in which the texts were served. `has_entity` (rows,) is True for texts
    with an entity.
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


def save_predictions(path: Path, predictions: Sequence[ValidationPredictions]) -> None:
    """Write predictions to a JSON file."""
    rows = [
        {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in asdict(each).items()}
        for each in predictions
    ]
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def load_predictions(path: Path) -> list[ValidationPredictions]:
    """Return the predictions of a file of `save_predictions`."""
    return [
        ValidationPredictions(
            dataset=row["dataset"],
            language=row["language"],
            logits=np.asarray(row["logits"], np.float32),
            labels=np.asarray(row["labels"]),
            label_choices=tuple(row["label_choices"]),
            languages=np.asarray(row["languages"]),
            has_entity=np.asarray(row["has_entity"]),
        )
        for row in json.loads(path.read_text(encoding="utf-8"))
    ]


def fit_calibration(predictions: Sequence[ValidationPredictions]) -> Calibration:
    """Return the scaling with the lowest log loss for each language, separately for sets about entities.

    Sets have equal weight. A set that lacks a label is scored over the labels that it has, as in training.
    """
    keys = sorted({validation.calibration_key for validation in predictions})
    return {key: fit_scaling([group for group in predictions if group.calibration_key == key]) for key in keys}


def fit_scaling(predictions: Sequence[ValidationPredictions]) -> LogitScaling:
    """Return the scaling with the lowest log loss over sets of equal weight."""
    logits = [validation.logits.astype(np.float64) for validation in predictions]
    entropies = [entropy(rows)[:, None] for rows in logits]
    targets = [np.searchsorted(validation.label_choices, validation.labels) for validation in predictions]

    def loss(parameters: NDArray[np.float64]) -> float:
        log_temperature, power, bias = parameters[0], parameters[1], np.append(parameters[2:], 0.0)
        total = 0.0
        for validation, rows, row_entropies, target in zip(predictions, logits, entropies, targets, strict=True):
            scaled = rows / (np.exp(log_temperature) * row_entropies**power) + bias
            scores = log_softmax(scaled[:, validation.label_choices])
            total -= float(np.mean(scores[np.arange(len(target)), target]))
        # A slight pull to plain temperature scaling: a set of a thousand rows cannot prove a small bias.
        return total / len(predictions) + 1e-3 * float(np.sum(parameters[1:] ** 2))

    best = minimize(loss, np.zeros(predictions[0].logits.shape[1] + 1), method="BFGS")
    # Without errors, or without any right answer, the best temperature has no bound.
    log_temperature = np.clip(best.x[0], *np.log(TEMPERATURES))
    power, bias = np.clip(best.x[1], *POWERS), np.clip(np.append(best.x[2:], 0.0), *BIASES)
    rounded = [round(float(value), 6) for value in (np.exp(log_temperature), power, *bias)]
    return LogitScaling(rounded[0], rounded[1], tuple(rounded[2:]))


def cross_fitted_errors(predictions: Sequence[ValidationPredictions]) -> dict[str, float]:
    """Return the calibration error of each set, with each half scaled by a fit on the opposite halves."""
    halves = [[select_fold(validation, start) for validation in predictions] for start in (0, 1)]
    calibrations = [fit_calibration(half) for half in halves]
    errors = {}
    for first, second in zip(*halves, strict=True):
        scores = np.concatenate([calibrate(first, calibrations[1]), calibrate(second, calibrations[0])])
        labels = np.concatenate([first.labels, second.labels])
        errors[first.dataset] = expected_calibration_error(*top_confidences(scores, labels))
    return errors


def select_fold(predictions: ValidationPredictions, start: int) -> ValidationPredictions:
    """Return every second row, from `start`."""
    return replace(
        predictions,
        logits=predictions.logits[start::2],
        labels=predictions.labels[start::2],
        languages=predictions.languages[start::2],
        has_entity=predictions.has_entity[start::2],
    )


def calibrate(predictions: ValidationPredictions, calibration: Calibration) -> NDArray[np.float64]:
    """Return probabilities (rows, labels), each row scaled as in serving."""
    keys = zip(predictions.languages, predictions.has_entity, strict=True)
    scalings = [find_scaling(calibration, str(language), bool(has_entity)) for language, has_entity in keys]
    return calibrate_logits(predictions.logits, scalings)


def expected_calibration_error(confidence: NDArray[np.floating], correct: NDArray[np.bool_]) -> float:
    """Return the expected calibration error of (rows,) confidences, in 15 bins of equal width (Naeini et al. 2015)."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    sums, hits = (np.bincount(bins, weights, BINS) for weights in (confidence, correct.astype(float)))
    return float(np.abs(sums - hits).sum() / len(bins))


def top_confidences(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the confidence in the top label of each row, (rows,), and a mask of the rows where it is correct."""
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == labels


def expected_error_by_chance(confidence: NDArray[np.float64]) -> float:
    """Return the mean calibration error of predictions that are correct exactly as often as their confidences say.

    No calibration can be shown to be better on that number of rows (consistency resampling, Broecker and Smith 2007).
    """
    rng = np.random.default_rng(0)
    draws = (rng.random(len(confidence)) < confidence for _ in range(DRAWS))
    return float(np.mean([expected_calibration_error(confidence, correct) for correct in draws]))
