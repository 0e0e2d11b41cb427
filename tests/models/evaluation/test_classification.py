from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.evaluation.classification import classification_table, report_dataset, write_classification
from models.export.parity import (
    INT8_BOUNDS,
    MIN_F1_ROWS,
    Parity,
    ParityError,
    check_parity,
    largest_batch_change,
    measure_parity,
)
from models.prediction.calibration import LogitScaling
from models.prediction.calibration_fit import ValidationPredictions
from models.runtime.offline import infer_all
from models.tasks import SENTIMENT
from models.text.encoding import Batch, Encoding

EVEN = {"en": LogitScaling(1.0, 0.0, (0.0, 0.0, 0.0))}


class LengthRuntime:
    """Answers each text with its length, plus `leak` for each further text in the batch."""

    def __init__(self, leak: float = 0.0) -> None:
        self.leak = leak
        self.sizes: list[int] = []

    def run(self, batch: Batch) -> NDArray[np.float32]:
        self.sizes.append(batch.ids.size)
        lengths = batch.mask.sum(axis=1) + self.leak * (len(batch.mask) - 1)
        return np.stack([lengths, 0 * lengths, -lengths], axis=1).astype(np.float32)


def texts(*lengths: int) -> list[Encoding]:
    return [Encoding(np.zeros(n, np.int64), np.zeros(n, np.int64), False, "en") for n in lengths]


def predictions(
    rows: list[tuple[str, str]], label_choices: tuple[int, ...] = (0, 1, 2), rival: int | None = None
) -> ValidationPredictions:
    """Return predictions for rows of (label, answer). `rival` is a label that comes second in every row."""
    labels = np.asarray([SENTIMENT.labels.index(label) for label, _ in rows])
    logits = np.zeros((len(rows), 3), np.float32)
    for row, (_, answer) in enumerate(rows):
        logits[row, SENTIMENT.labels.index(answer)] = 2
    if rival is not None:
        logits[:, rival] += 1
    return ValidationPredictions(
        "news", "en", logits, labels, label_choices, np.full(len(rows), "en"), np.zeros(len(rows), bool)
    )


def test_logits_come_back_in_the_order_of_the_texts() -> None:
    runtime = LengthRuntime()
    lengths = [300, 5, 90, 700, 7, 5, 250]
    assert infer_all(runtime, texts(*lengths), pad_id=1)[:, 0].tolist() == lengths
    assert max(runtime.sizes) <= 1024


def test_a_report_of_a_set_with_three_labels() -> None:
    report = report_dataset(
        predictions(
            [("negative", "negative"), ("neutral", "neutral"), ("positive", "neutral"), ("positive", "positive")]
        ),
        EVEN,
        SENTIMENT,
    )
    assert (report.accuracy, report.accuracy_among) == (0.75, 0.75)
    assert report.f1 == pytest.approx({"negative": 1, "neutral": 2 / 3, "positive": 2 / 3})
    assert report.macro_f1 == pytest.approx(7 / 9)
    assert report.confusion == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


def test_a_neutral_answer_is_wrong_but_not_among_the_two_labels_of_a_set() -> None:
    rows = [("negative", "neutral"), ("negative", "negative")]
    report = report_dataset(predictions(rows, label_choices=(0, 2), rival=0), EVEN, SENTIMENT)
    assert (report.accuracy, report.accuracy_among) == (0.5, 1.0)
    assert "between its two labels" in classification_table([report])


@pytest.mark.slow
def test_an_evaluation_writes_three_files(tmp_path: Path) -> None:
    write_classification(
        [report_dataset(predictions([("neutral", "neutral")]), EVEN, SENTIMENT)], SENTIMENT, tmp_path / "new"
    )
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        "confusion.png",
        "evaluation.json",
        "evaluation.md",
    ]


def test_parity_measures_agreement_and_loss_of_f1() -> None:
    truth = predictions(
        [("negative", "negative"), ("neutral", "neutral"), ("positive", "positive"), ("neutral", "neutral")]
    )
    changed = predictions(
        [("negative", "negative"), ("neutral", "neutral"), ("positive", "neutral"), ("neutral", "neutral")]
    )
    parity = measure_parity([truth, truth], [truth, changed], 0.0, SENTIMENT)
    assert parity.agreement == 7 / 8
    assert parity.f1_loss == pytest.approx(1 - (1 + 0.8 + 0) / 3)


def test_the_loss_of_f1_is_that_of_large_sets_if_there_are_any() -> None:
    rows = [("negative", "negative"), ("neutral", "neutral"), ("positive", "positive")]
    small, changed = predictions(rows), predictions([*rows[:2], ("positive", "neutral")])
    large = predictions(rows * (MIN_F1_ROWS // 3 + 1))
    assert measure_parity([small], [changed], 0.0, SENTIMENT).f1_loss > 0.1
    parity = measure_parity([small, large], [changed, large], 0.0, SENTIMENT)
    assert parity.f1_loss == 0
    assert parity.agreement < 1


def test_a_score_that_depends_on_its_batch_is_measured() -> None:
    assert largest_batch_change(LengthRuntime(), texts(1, 2, 1), pad=1) == 0
    assert largest_batch_change(LengthRuntime(leak=0.1), texts(1, 2, 1), pad=1) > 0.01


@pytest.mark.parametrize(
    ("parity", "reason"),
    [(Parity(0.98, 0, 0), "agree"), (Parity(1, 0.004, 0), "macro-F1"), (Parity(1, 0, 0.002), "batch")],
)
def test_a_graph_that_drifts_is_refused(parity: Parity, reason: str) -> None:
    check_parity("good", Parity(0.985, 0.003, 0.001), INT8_BOUNDS)
    with pytest.raises(ParityError, match=reason):
        check_parity("bad", parity, INT8_BOUNDS)
