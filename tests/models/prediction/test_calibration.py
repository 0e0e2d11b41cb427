from __future__ import annotations

import numpy as np
import pytest

from models.prediction.calibration import LogitScaling, calibrate_logits, calibration_key, find_scaling, probabilities
from models.prediction.sentiment import polarity


def test_polarity_is_the_positive_minus_the_negative_share() -> None:
    assert polarity({"negative": 0.7, "neutral": 0.1, "positive": 0.2}) == pytest.approx(-0.5)


def test_each_language_has_a_scaling() -> None:
    calibration = {"en": LogitScaling(1.0, 0.0, (0.0, 0.0, 0.0)), "zh": LogitScaling(4.0, 0.0, (0.0, 0.0, 3.0))}
    logits = np.asarray([[2.0, 0.0, 0.0]] * 3, np.float32)
    scores = calibrate_logits(logits, [calibration[language] for language in ("en", "zh", "en")])
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert scores.argmax(axis=1).tolist() == [0, 2, 0]
    np.testing.assert_array_equal(scores[1], probabilities(logits[1], calibration["zh"]))


def test_texts_with_an_entity_use_a_separate_scaling_if_there_is_one() -> None:
    plain, for_entities = LogitScaling(1.0, 0.0, (0.0, 0.0, 0.0)), LogitScaling(2.0, 0.0, (0.0, 0.0, 0.0))
    calibration = {"en": plain, "zh": plain, calibration_key("en", True): for_entities}
    assert find_scaling(calibration, "en", True) is for_entities
    assert find_scaling(calibration, "en", False) is plain
    assert find_scaling(calibration, "zh", True) is plain


def test_logits_that_are_not_finite_spoil_only_their_row() -> None:
    plain = LogitScaling(1.0, 0.0, (0.0, 0.0, 0.0))
    logits = np.asarray([[np.nan, 0, 0], [1, 2, 3], [np.inf, 0, 0], [-np.inf, 0, 0]], np.float32)
    scores = calibrate_logits(logits, [plain] * 4)
    assert [bool(np.isfinite(row).all()) for row in scores] == [False, True, False, False]


def test_extreme_logits_give_no_nan() -> None:
    scores = probabilities(np.asarray([[1e4, -1e4, 0.0]], np.float32), LogitScaling(0.5, 0.0, (0.0, 0.0, 0.0)))
    assert scores.tolist() == [[1.0, 0.0, 0.0]]
