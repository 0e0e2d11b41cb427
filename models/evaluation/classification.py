"""Evaluation: a bundle's answers on the validation files, from the graph that serves, measured per data set.

Knows runtimes and data sets; prints nothing. The pictures need matplotlib, which is imported when they are drawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score

from models.bundle import Bundle, Metric
from models.data.classification import Dataset, Example, read_dataset
from models.prediction.calibration import Calibration
from models.prediction.calibration_fit import ValidationPredictions, calibrate, expected_calibration_error
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
    """One data set's figures.

    The label is chosen among all the task's labels, as served; `accuracy_among` chooses only among those that the
    set's annotators had. `f1` is per label of the set; `confusion[i][j]` counts rows of label i answered with j.
    """

    dataset: str
    language: str
    rows: int
    accuracy: float
    accuracy_among: float
    macro_f1: float
    f1: dict[str, float]
    ece: float
    confusion: list[list[int]]


def encode_examples(tokenizer: Tokenizer, examples: Sequence[Example]) -> list[Encoding]:
    return [tokenizer.encode(example.text, example.entity) for example in examples]


def predict_validation(
    runtime: Runtime, tokenizer: Tokenizer, task: Task, data: Path, datasets: Iterable[Dataset], rows: int | None = None
) -> list[ValidationPredictions]:
    """Every validation set, or the first `rows` of each, answered by the runtime."""
    answers = []
    for dataset in datasets:
        examples = read_dataset(data, dataset, "validation")[:rows]
        tokens = encode_examples(tokenizer, examples)
        answers.append(
            ValidationPredictions(
                dataset.name,
                dataset.language,
                infer_all(runtime, tokens, tokenizer.pad_id),
                np.asarray([task.labels.index(example.label) for example in examples]),
                tuple(task.labels.index(label) for label in dataset.labels),
                np.asarray([item.language for item in tokens]),
                np.asarray([item.has_entity for item in tokens]),
            )
        )
    return answers


def report_dataset(answers: ValidationPredictions, calibration: Calibration, task: Task) -> ClassificationReport:
    scores = calibrate(answers, calibration)
    chosen, among = scores.argmax(axis=1), list(answers.label_choices)
    chosen_among = np.asarray(among)[scores[:, among].argmax(axis=1)]
    per_label = f1_score(answers.labels, chosen, labels=among, average=None, zero_division=0.0)
    return ClassificationReport(
        dataset=answers.dataset,
        language=answers.language,
        rows=len(chosen),
        accuracy=float((chosen == answers.labels).mean()),
        accuracy_among=float((chosen_among == answers.labels).mean()),
        macro_f1=float(per_label.mean()),
        f1={task.labels[index]: float(value) for index, value in zip(among, per_label, strict=True)},
        ece=expected_calibration_error(scores.max(axis=1), chosen == answers.labels),
        confusion=confusion_matrix(answers.labels, chosen, labels=range(len(task.labels))).tolist(),
    )


def evaluate_classifier(bundle: Bundle, data: Path, device: Device = "cpu") -> list[ClassificationReport]:
    """All of the bundle's data sets, as it serves on that device; raises RuntimeError as `open_runtime`."""
    tokenizer = Tokenizer.from_bundle(bundle)
    answers = predict_validation(
        open_runtime(bundle, 0, device), tokenizer, bundle.task, data, datasets_of(bundle, data)
    )
    return [report_dataset(rows, bundle.calibration, bundle.task) for rows in answers]


def metrics_of(bundle_name: str, measured: Sequence[ClassificationReport]) -> tuple[Metric, ...]:
    """The figures that the bundle's manifest carries."""
    command = COMMAND.format(name=bundle_name)
    return tuple(
        Metric(row.dataset, row.language, name, round(getattr(row, name), 4), command)
        for row in measured
        for name in ("accuracy", "macro_f1", "ece")
    )


def datasets_of(bundle: Bundle, data: Path) -> list[Dataset]:
    """The data sets that the bundle was measured on, with the labels that the files in `data` use."""
    labels, measured = bundle.task.labels, {metric.dataset for metric in bundle.metrics}
    found = []
    for source in bundle.sources:
        if source.name not in measured:
            continue
        whole = Dataset(source.name, source.language, labels, source.licence)
        used = {example.label for example in read_dataset(data, whole, "validation")}
        found.append(Dataset(source.name, source.language, tuple(x for x in labels if x in used), source.licence))
    return found


def classification_table(measured: Sequence[ClassificationReport]) -> str:
    """A Markdown table of the figures."""
    lines = [
        "| data set | language | rows | accuracy | macro-F1 | F1 per label | ECE |",
        "|---|---|--:|--:|--:|---|--:|",
    ]
    for row in measured:
        f1 = ", ".join(f"{label} {value:.3f}" for label, value in row.f1.items())
        accuracy = f"{row.accuracy:.3f}"
        if len(row.f1) < len(row.confusion):
            accuracy += f" ({row.accuracy_among:.3f} between its two labels)"
        lines.append(
            f"| {row.dataset} | {row.language} | {row.rows:,} | {accuracy} | {row.macro_f1:.3f} "
            f"| {f1} | {row.ece:.3f} |"
        )
    return "\n".join(lines)


def write_classification(measured: Sequence[ClassificationReport], task: Task, out: Path) -> None:
    """`evaluation.json`, `evaluation.md` and `confusion.png` in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    content = json.dumps([asdict(row) for row in measured], indent=1, ensure_ascii=False)
    (out / "evaluation.json").write_text(content + "\n", encoding="utf-8")
    (out / "evaluation.md").write_text(classification_table(measured) + "\n", encoding="utf-8")
    draw_confusion(measured, task, out / CONFUSION)


def draw_confusion(measured: Sequence[ClassificationReport], task: Task, path: Path) -> None:
    """The confusion matrices side by side: rows are the true labels, as shares of each."""
    from matplotlib.figure import Figure

    columns = min(4, len(measured))
    lines = -(-len(measured) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.3 * lines), layout="constrained")
    for place, row in enumerate(measured, 1):
        axes = figure.add_subplot(lines, columns, place)
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
