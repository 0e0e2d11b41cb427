from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from models.prediction.calibration import calibration_key
from models.prediction.calibration_fit import (
    ValidationPredictions,
    calibrate,
    chosen,
    cross_fitted_errors,
    expected_calibration_error,
    expected_error_by_chance,
    fit_calibration,
)


def answers(
    logits: NDArray[np.float32], labels: NDArray[np.int64], among: tuple[int, ...] = (0, 1, 2), targeted: bool = False
) -> ValidationPredictions:
    rows = len(labels)
    return ValidationPredictions("news", "en", logits, labels, among, np.full(rows, "en"), np.full(rows, targeted))


def drawn(rows: int, among: tuple[int, ...] = (0, 1, 2)) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits, and labels drawn from exactly the probabilities that the logits say over `among`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (rows, 3)).astype(np.float32)
    chances = np.exp(logits[:, among])
    chances /= chances.sum(axis=1, keepdims=True)
    places = (chances.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    return logits, np.asarray(among)[places]


@pytest.mark.parametrize("among", [(0, 1, 2), (0, 2)])
def test_an_overconfident_model_gets_the_temperature_that_mends_it(among: tuple[int, ...]) -> None:
    logits, labels = drawn(20_000, among)
    assert fit_calibration([answers(3 * logits, labels, among)])["en"].temperature == pytest.approx(3, rel=0.08)


def test_a_shifted_model_gets_the_bias_that_mends_it() -> None:
    logits, labels = drawn(20_000)
    scaling = fit_calibration([answers(logits + np.asarray([0.0, 1.0, 0.0], np.float32), labels)])["en"]
    assert scaling.bias[1] - scaling.bias[2] == pytest.approx(-1, abs=0.1)


def test_two_label_sets_give_the_third_no_bias() -> None:
    logits, labels = drawn(5_000, (0, 2))
    assert fit_calibration([answers(logits, labels, (0, 2))])["en"].bias[1] == pytest.approx(0, abs=1e-3)


def test_a_model_that_overrates_only_what_it_is_sure_of_gets_a_temperature_that_knows_it() -> None:
    logits, labels = drawn(20_000)
    sure = np.ptp(logits, axis=1, keepdims=True) > 4
    own = answers(np.where(sure, 3 * logits, logits), labels)
    scaling = fit_calibration([own])["en"]
    flat = {"en": replace(scaling, power=0.0)}
    assert scaling.power < -0.1
    assert expected_calibration_error(
        *chosen(calibrate(own, {"en": scaling}), labels)
    ) < 0.6 * expected_calibration_error(*chosen(calibrate(own, flat), labels))


def test_sets_about_entities_are_scaled_apart() -> None:
    logits, labels = drawn(20_000)
    plain, targeted = answers(3 * logits, labels), answers(logits, labels, targeted=True)
    fitted = fit_calibration([plain, targeted])
    assert fitted["en"].temperature == pytest.approx(3, rel=0.08)
    assert fitted[calibration_key("en", True)].temperature == pytest.approx(1, rel=0.08)
    for own in (plain, targeted):
        assert expected_calibration_error(*chosen(calibrate(own, fitted), labels)) < 0.015


def test_true_probabilities_have_no_calibration_error_and_boasts_have() -> None:
    sure, right = np.asarray([[0.9, 0.05, 0.05]] * 100), np.asarray([0] * 90 + [1] * 10)
    assert expected_calibration_error(*chosen(sure, right)) == pytest.approx(0, abs=1e-9)
    assert expected_calibration_error(*chosen(sure, np.asarray([0] * 50 + [1] * 50))) == pytest.approx(0.4)


def test_the_crossfitted_error_is_near_the_fitted_one_on_many_rows() -> None:
    logits, labels = drawn(20_000)
    own = answers(2 * logits, labels)
    fitted = expected_calibration_error(*chosen(calibrate(own, fit_calibration([own])), labels))
    assert cross_fitted_errors([own])["news"] == pytest.approx(fitted, abs=0.01)


def test_chance_leaves_faultless_confidences_the_error_that_they_are_measured_to_have() -> None:
    chance = np.random.default_rng(4)
    found = {}
    for rows in (200, 5000):
        confidence = chance.uniform(0.5, 1, (40, rows))
        measured = np.mean([expected_calibration_error(one, chance.random(rows) < one) for one in confidence])
        found[rows] = expected_error_by_chance(confidence[0])
        assert found[rows] == pytest.approx(measured, rel=0.15)
    assert found[200] > 4 * found[5000]
