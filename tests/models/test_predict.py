from __future__ import annotations

import numpy as np
import pytest

from models.predict import Scaling, probabilities, sentiment


def test_scores_sum_to_one_and_polarity_is_their_difference() -> None:
    answer = sentiment(np.asarray([2.0, 0.0, -1.0], np.float32), {"en": Scaling(1.0, 0.0, (0.0, 0.0, 0.0))}, "en")
    assert answer.label == "negative"
    assert sum(answer.scores.values()) == pytest.approx(1)
    assert answer.polarity == pytest.approx(answer.scores["positive"] - answer.scores["negative"])


def test_each_language_has_its_own_scaling() -> None:
    calibration = {"en": Scaling(1.0, 0.0, (0.0, 0.0, 0.0)), "zh": Scaling(4.0, 0.0, (0.0, 0.0, 3.0))}
    logits = np.asarray([2.0, 0.0, 0.0], np.float32)
    assert sentiment(logits, calibration, "en").label == "negative"
    assert sentiment(logits, calibration, "zh").label == "positive"


def test_extreme_logits_give_no_nan() -> None:
    scores = probabilities(np.asarray([[1e4, -1e4, 0.0]], np.float32), Scaling(0.5, 0.0, (0.0, 0.0, 0.0)))
    assert scores.tolist() == [[1.0, 0.0, 0.0]]
