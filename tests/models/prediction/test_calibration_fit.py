from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from models.prediction.calibration import Calibration, calibration_key
from models.prediction.calibration_fit import (
    ValidationPredictions,
    calibrate,
    cross_fitted_errors,
    expected_calibration_error,
    expected_error_by_chance,
    fit_calibration,
    top_confidences,
)


def predictions(
    logits: NDArray[np.float32],
    labels: NDArray[np.int64],
    choices: tuple[int, ...] = (0, 1, 2),
    has_entity: bool = False,
) -> ValidationPredictions:
    rows = len(labels)
    return ValidationPredictions("news", "en", logits, labels, choices, np.full(rows, "en"), np.full(rows, has_entity))


def draw_predictions(rows: int, choices: tuple[int, ...] = (0, 1, 2)) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return logits, and labels drawn from the softmax of the logits over `choices`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (rows, 3)).astype(np.float32)
    shares = np.exp(logits[:, choices])
    shares /= shares.sum(axis=1, keepdims=True)
    indices = (shares.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    return logits, np.asarray(choices)[indices]


def calibrated_error(validation: ValidationPredictions, calibration: Calibration) -> float:
    return expected_calibration_error(*top_confidences(calibrate(validation, calibration), validation.labels))


@pytest.mark.parametrize("choices", [(0, 1, 2), (0, 2)])
def test_an_overconfident_model_gets_a_temperature_that_corrects_it(choices: tuple[int, ...]) -> None:
    logits, labels = draw_predictions(20_000, choices)
    assert fit_calibration([predictions(3 * logits, labels, choices)])["en"].temperature == pytest.approx(3, rel=0.08)


def test_a_shifted_model_gets_a_bias_that_corrects_it() -> None:
    logits, labels = draw_predictions(20_000)
    scaling = fit_calibration([predictions(logits + np.asarray([0.0, 1.0, 0.0], np.float32), labels)])["en"]
    assert scaling.bias[1] - scaling.bias[2] == pytest.approx(-1, abs=0.1)


def test_sets_of_two_labels_give_the_third_no_bias() -> None:
    logits, labels = draw_predictions(5_000, (0, 2))
    assert fit_calibration([predictions(logits, labels, (0, 2))])["en"].bias[1] == pytest.approx(0, abs=1e-3)


def test_overconfidence_only_at_high_confidences_is_fitted_by_the_power() -> None:
    logits, labels = draw_predictions(20_000)
    sure = np.ptp(logits, axis=1, keepdims=True) > 4
    validation = predictions(np.where(sure, 3 * logits, logits), labels)
    scaling = fit_calibration([validation])["en"]
    without_power = replace(scaling, power=0.0)
    assert scaling.power < -0.1
    assert calibrated_error(validation, {"en": scaling}) < 0.6 * calibrated_error(validation, {"en": without_power})


def test_sets_about_entities_are_scaled_separately() -> None:
    logits, labels = draw_predictions(20_000)
    plain, about_entities = predictions(3 * logits, labels), predictions(logits, labels, has_entity=True)
    calibration = fit_calibration([plain, about_entities])
    assert calibration["en"].temperature == pytest.approx(3, rel=0.08)
    assert calibration[calibration_key("en", True)].temperature == pytest.approx(1, rel=0.08)
    for validation in (plain, about_entities):
        assert calibrated_error(validation, calibration) < 0.015


def test_true_probabilities_have_no_calibration_error_and_overconfident_ones_have() -> None:
    sure, labels = np.asarray([[0.9, 0.05, 0.05]] * 100), np.asarray([0] * 90 + [1] * 10)
    assert expected_calibration_error(*top_confidences(sure, labels)) == pytest.approx(0, abs=1e-9)
    assert expected_calibration_error(*top_confidences(sure, np.asarray([0] * 50 + [1] * 50))) == pytest.approx(0.4)


def test_the_cross_fitted_error_is_near_the_fitted_error_on_many_rows() -> None:
    logits, labels = draw_predictions(20_000)
    validation = predictions(2 * logits, labels)
    fitted = calibrated_error(validation, fit_calibration([validation]))
    assert cross_fitted_errors([validation])["news"] == pytest.approx(fitted, abs=0.01)


def test_true_confidences_have_the_error_expected_by_chance() -> None:
    rng = np.random.default_rng(4)
    errors = {}
    for rows in (200, 5000):
        confidence = rng.uniform(0.5, 1, (40, rows))
        measured = np.mean([expected_calibration_error(draw, rng.random(rows) < draw) for draw in confidence])
        errors[rows] = expected_error_by_chance(confidence[0])
        assert errors[rows] == pytest.approx(measured, rel=0.15)
    assert errors[200] > 4 * errors[5000]
