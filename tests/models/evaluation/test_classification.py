from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.evaluation.classification import classification_table, report_dataset, write_classification
from models.export.parity import INT8_BOUNDS, Parity, ParityError, check_parity, largest_batch_change, measure_parity
from models.prediction.calibration import LogitScaling
from models.prediction.calibration_fit import ValidationPredictions
from models.runtime.offline import infer_all
from models.tasks import SENTIMENT
from models.text.encoding import Batch, Encoding

EVEN = {"en": LogitScaling(1.0, 0.0, (0.0, 0.0, 0.0))}


class Lengths:
    """Answers each text with its own length, plus `leak` for every other text in the batch."""

    def __init__(self, leak: float = 0.0) -> None:
        self.leak = leak
        self.sizes: list[int] = []

    def run(self, batch: Batch) -> NDArray[np.float32]:
        self.sizes.append(batch.ids.size)
        lengths = batch.mask.sum(axis=1) + self.leak * (len(batch.mask) - 1)
        return np.stack([lengths, 0 * lengths, -lengths], axis=1).astype(np.float32)


def texts(*lengths: int) -> list[Encoding]:
    return [Encoding(np.zeros(n, np.int64), np.zeros(n, np.int64), False, "en") for n in lengths]


def answers(
    rows: list[tuple[str, str]], among: tuple[int, ...] = (0, 1, 2), rival: int | None = None
) -> ValidationPredictions:
    """Rows of (label, answer); `rival` is a label that comes second in every row."""
    labels = np.asarray([SENTIMENT.labels.index(label) for label, _ in rows])
    logits = np.zeros((len(rows), 3), np.float32)
    for row, (_, answer) in enumerate(rows):
        logits[row, SENTIMENT.labels.index(answer)] = 2
    if rival is not None:
        logits[:, rival] += 1
    return ValidationPredictions(
        "news", "en", logits, labels, among, np.full(len(rows), "en"), np.zeros(len(rows), bool)
    )


def test_logits_come_back_in_the_order_of_the_texts() -> None:
    runtime = Lengths()
    lengths = [300, 5, 90, 700, 7, 5, 250]
    assert infer_all(runtime, texts(*lengths), pad=1)[:, 0].tolist() == lengths
    assert max(runtime.sizes) <= 1024


def test_figures_of_a_set_with_three_labels() -> None:
    found = report_dataset(
        answers([("negative", "negative"), ("neutral", "neutral"), ("positive", "neutral"), ("positive", "positive")]),
        EVEN,
        SENTIMENT,
    )
    assert (found.accuracy, found.accuracy_among) == (0.75, 0.75)
    assert found.f1 == pytest.approx({"negative": 1, "neutral": 2 / 3, "positive": 2 / 3})
    assert found.macro_f1 == pytest.approx(7 / 9)
    assert found.confusion == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


def test_a_neutral_answer_is_wrong_on_a_set_with_two_labels_but_not_among_its_two() -> None:
    rows = [("negative", "neutral"), ("negative", "negative")]
    found = report_dataset(answers(rows, among=(0, 2), rival=0), EVEN, SENTIMENT)
    assert (found.accuracy, found.accuracy_among) == (0.5, 1.0)
    assert "between its two labels" in classification_table([found])


def test_the_files_of_an_evaluation(tmp_path: Path) -> None:
    write_classification(
        [report_dataset(answers([("neutral", "neutral")]), EVEN, SENTIMENT)], SENTIMENT, tmp_path / "new"
    )
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [
        "confusion.png",
        "evaluation.json",
        "evaluation.md",
    ]


def test_drift_counts_changed_labels_and_lost_f1() -> None:
    truth = answers(
        [("negative", "negative"), ("neutral", "neutral"), ("positive", "positive"), ("neutral", "neutral")]
    )
    other = answers([("negative", "negative"), ("neutral", "neutral"), ("positive", "neutral"), ("neutral", "neutral")])
    found = measure_parity([truth, truth], [truth, other], 0.0, SENTIMENT)
    assert found.agreement == 7 / 8
    assert found.f1_loss == pytest.approx(1 - (1 + 0.8 + 0) / 3)


def test_a_score_that_depends_on_its_batch_is_measured() -> None:
    assert largest_batch_change(Lengths(), texts(1, 2, 1), pad=1) == 0
    assert largest_batch_change(Lengths(leak=0.1), texts(1, 2, 1), pad=1) > 0.01


@pytest.mark.parametrize(
    ("found", "reason"),
    [(Parity(0.98, 0, 0), "agree"), (Parity(1, 0.004, 0), "macro-F1"), (Parity(1, 0, 0.002), "batch")],
)
def test_a_graph_that_drifts_is_refused(found: Parity, reason: str) -> None:
    check_parity("good", Parity(0.985, 0.003, 0.001), INT8_BOUNDS)
    with pytest.raises(ParityError, match=reason):
        check_parity("bad", found, INT8_BOUNDS)
