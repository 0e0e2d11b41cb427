"""Evaluation of a classifier on validation files, per data set, with the graph that serves.

Knows runtimes and data sets. Prints nothing. Drawing the pictures imports matplotlib.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score

from models.bundle import Bundle, Metric
from models.data.classification import Dataset, Example, read_dataset
from models.prediction.calibration import Calibration
from models.prediction.calibration_fit import (
    ValidationPredictions,
    calibrate,
    expected_calibration_error,
    top_confidences,
)
from models.runtime.auto import open_runtime
from models.runtime.offline import infer_all
from models.runtime.protocol import Device, Runtime
from models.tasks import Task
from models.text.encoding import Encoding
from models.text.tokenizer import Tokenizer

COMMAND = "heed evaluate --bundle models/bundles/{name} --data DATA"
CONFUSION = "confusion.png"


@dataclass(frozen=True, slots=True)
class ClassificationReport:
    """The figures for one data set.

    The answer is chosen among all labels of the task, as served. For `accuracy_among` it is chosen only among the
    labels of the data set. `f1` is per label of the set. `wrong_confidence` is the mean confidence of wrong answers.
    `confusion[i][j]` counts rows of label i answered with j.
    """

    dataset: str
    language: str
    rows: int
    accuracy: float
    accuracy_among: float
    macro_f1: float
    f1: dict[str, float]
    ece: float
    wrong_confidence: float
    confusion: list[list[int]]


def encode_examples(tokenizer: Tokenizer, examples: Sequence[Example]) -> list[Encoding]:
    return [tokenizer.encode(example.text, example.entity) for example in examples]


def predict_validation(
    runtime: Runtime, tokenizer: Tokenizer, task: Task, data: Path, datasets: Iterable[Dataset], rows: int | None = None
) -> list[ValidationPredictions]:
    """Run every validation set, or its first `rows`, through the runtime. Sources without a file are left out."""
    predictions = []
    for dataset in datasets:
        if not dataset.has_validation:
            continue
        examples = read_dataset(data, dataset, "validation")[:rows]
        encodings = encode_examples(tokenizer, examples)
        predictions.append(
            ValidationPredictions(
                dataset.name,
                dataset.language,
                infer_all(runtime, encodings, tokenizer.pad_id),
                np.asarray([task.labels.index(example.label) for example in examples]),
                tuple(task.labels.index(label) for label in dataset.labels),
                np.asarray([encoding.language for encoding in encodings]),
                np.asarray([encoding.has_entity for encoding in encodings]),
            )
        )
    return predictions


def report_dataset(predictions: ValidationPredictions, calibration: Calibration, task: Task) -> ClassificationReport:
    scores = calibrate(predictions, calibration)
    chosen, choices = scores.argmax(axis=1), list(predictions.label_choices)
    chosen_among = np.asarray(choices)[scores[:, choices].argmax(axis=1)]
    confidence, correct = scores.max(axis=1), chosen == predictions.labels
    per_label = f1_score(predictions.labels, chosen, labels=choices, average=None, zero_division=0.0)
    return ClassificationReport(
        dataset=predictions.dataset,
        language=predictions.language,
        rows=len(chosen),
        accuracy=float(correct.mean()),
        accuracy_among=float((chosen_among == predictions.labels).mean()),
        macro_f1=float(per_label.mean()),
        f1={task.labels[index]: float(value) for index, value in zip(choices, per_label, strict=True)},
        ece=expected_calibration_error(confidence, correct),
        wrong_confidence=float(confidence[~correct].mean()) if not correct.all() else 0.0,
        confusion=confusion_matrix(predictions.labels, chosen, labels=range(len(task.labels))).tolist(),
    )


@dataclass(frozen=True, slots=True)
class GenreCalibration:
    """The calibration over the rows of all data sets of a genre: headlines, prose, or customer and social texts."""

    genre: str
    rows: int
    accuracy: float
    ece: float
    wrong_confidence: float


def calibrate_genres(
    predictions: Sequence[ValidationPredictions], datasets: Sequence[Dataset], calibration: Calibration
) -> list[GenreCalibration]:
    """Return the calibration of each genre that data sets name."""
    genres = {dataset.name: dataset.genre for dataset in datasets if dataset.genre}
    rows: dict[str, list[tuple[NDArray[np.float64], NDArray[np.bool_]]]] = {}
    for each in predictions:
        if each.dataset in genres:
            rows.setdefault(genres[each.dataset], []).append(top_confidences(calibrate(each, calibration), each.labels))
    results = []
    for genre, answers in sorted(rows.items()):
        confidence, correct = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        results.append(
            GenreCalibration(
                genre,
                len(correct),
                float(correct.mean()),
                expected_calibration_error(confidence, correct),
                float(confidence[~correct].mean()) if not correct.all() else 0.0,
            )
        )
    return results


def evaluate_classifier(bundle: Bundle, data: Path, device: Device = "cpu") -> list[ClassificationReport]:
    """Evaluate a bundle on all its data sets, as it serves on that device.

    Raises RuntimeError as `open_runtime` does.
    """
    tokenizer = Tokenizer.from_bundle(bundle)
    predictions = predict_validation(
        open_runtime(bundle, 0, device), tokenizer, bundle.task, data, datasets_of(bundle, data)
    )
    return [report_dataset(dataset, bundle.calibration, bundle.task) for dataset in predictions]


def metrics_of(bundle_name: str, measured: Sequence[ClassificationReport]) -> tuple[Metric, ...]:
    """Return the figures that go into the bundle's manifest."""
    command = COMMAND.format(name=bundle_name)
    return tuple(
        Metric(row.dataset, row.language, name, round(getattr(row, name), 4), command)
        for row in measured
        for name in ("accuracy", "macro_f1", "ece")
    )


def datasets_of(bundle: Bundle, data: Path) -> list[Dataset]:
    """Return the data sets that the bundle was measured on, with the labels that the files in `data` use."""
    labels, measured = bundle.task.labels, {metric.dataset for metric in bundle.metrics}
    datasets = []
    for source in bundle.sources:
        if source.name not in measured:
            continue
        full = Dataset(source.name, source.language, labels, source.licence)
        used = {example.label for example in read_dataset(data, full, "validation")}
        datasets.append(
            Dataset(source.name, source.language, tuple(label for label in labels if label in used), source.licence)
        )
    return datasets


def classification_table(measured: Sequence[ClassificationReport]) -> str:
    """Return a Markdown table of the figures."""
    lines = [
        "| data set | language | rows | accuracy | macro-F1 | F1 per label | ECE | confidence of wrong answers |",
        "|---|---|--:|--:|--:|---|--:|--:|",
    ]
    for row in measured:
        f1 = ", ".join(f"{label} {value:.3f}" for label, value in row.f1.items())
        accuracy = f"{row.accuracy:.3f}"
        if len(row.f1) < len(row.confusion):
            accuracy += f" ({row.accuracy_among:.3f} between its two labels)"
        lines.append(
            f"| {row.dataset} | {row.language} | {row.rows:,} | {accuracy} | {row.macro_f1:.3f} "
            f"| {f1} | {row.ece:.3f} | {row.wrong_confidence:.3f} |"
        )
    return "\n".join(lines)


def write_classification(measured: Sequence[ClassificationReport], task: Task, out: Path) -> None:
    """Write `evaluation.json`, `evaluation.md` and `confusion.png` to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    content = json.dumps([asdict(row) for row in measured], indent=1, ensure_ascii=False)
    (out / "evaluation.json").write_text(content + "\n", encoding="utf-8")
    (out / "evaluation.md").write_text(classification_table(measured) + "\n", encoding="utf-8")
    draw_confusion(measured, task, out / CONFUSION)


def draw_confusion(measured: Sequence[ClassificationReport], task: Task, path: Path) -> None:
    """Draw the confusion matrices side by side. Rows are the true labels, as shares of each label."""
    from matplotlib.figure import Figure

    columns = min(4, len(measured))
    lines = -(-len(measured) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.3 * lines), layout="constrained")
    for position, row in enumerate(measured, 1):
        axes = figure.add_subplot(lines, columns, position)
        counts = np.asarray(row.confusion)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (i, j), share in np.ndenumerate(shares):
            axes.text(j, i, f"{counts[i, j]}", ha="center", va="center", color="white" if share > 0.6 else "black")
        axes.set_title(f"{row.dataset} ({row.language})", fontsize=10)
        axes.set_xticks(range(len(task.labels)), task.labels, fontsize=8)
        axes.set_yticks(range(len(task.labels)), task.labels, fontsize=8, rotation=90, va="center")
        axes.set_xlabel("answered", fontsize=8)
        axes.set_ylabel("labelled", fontsize=8)
    figure.savefig(path, dpi=110)
