"""The model card of a classifier bundle, in the model-card convention (Mitchell et al. 2019).

Every figure comes from the evaluation and the export that made the bundle. The prose is in `cards/TASK.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template

from models.bundle import Bundle, Manifest
from models.data.classification import Dataset
from models.evaluation.classification import (
    COMMAND,
    ClassificationReport,
    GenreCalibration,
    classification_table,
)
from models.export.card_template import load_template
from models.export.parity import MIN_F1_ROWS, Parity
from models.graph.writer import Precision
from models.training.classification import TrainingRun

STORAGE: dict[Precision, str] = {
    "int8": "8-bit word embeddings, 7-bit matrices with a scale per output, multiplied in 8 bits",
    "mixed": "8-bit word embeddings, 16-bit matrices, arithmetic in fp32",
    "fp16": "weights and arithmetic in 16 bits",
    "fp32": "weights and arithmetic in 32 bits",
}

TRAINING = {
    False: "Trained with `heed train $task --base BASE --data DATA --out OUT` and `models/configs/$task.toml`",
    True: "Distilled with `heed distill $task --teacher RUN --data DATA --texts TEXTS --out OUT` and "
    "`models/configs/$task-student.toml`",
}
"""The sentence on training, for a teacher and for a student."""


@dataclass(frozen=True, slots=True)
class CardFigures:
    """The figures that a card reports.

    `crossfit` is the cross-fitted calibration error by data set. `unseen` are the figures of sources that runs were
    trained without.
    """

    measured: Sequence[ClassificationReport]
    crossfit: Mapping[str, float]
    parities: Mapping[str, Parity]
    genres: Sequence[GenreCalibration]
    unseen: Sequence[ClassificationReport]


def render_classifier_card(
    manifest: Manifest, figures: CardFigures, trained: TrainingRun, teacher: Bundle | None, storage: Precision
) -> str:
    """Return the card's text."""
    datasets, is_student = trained.config.datasets, trained.layers is not None
    parity = [
        f"`{name}` against the trained network in fp32 (torch), on all validation rows: {parity.agreement:.2%} of "
        f"labels agree. The largest macro-F1 loss of a set of {MIN_F1_ROWS} rows or more is {parity.f1_loss:.4f}. A "
        f"probability alone and in a batch of 32 differs by at most {parity.batch_change:.1e}."
        for name, parity in figures.parities.items()
    ]
    return load_template(manifest.task.name).substitute(
        name=manifest.name,
        version=manifest.version,
        base=manifest.base,
        base_digest=manifest.base_digest,
        max_tokens=manifest.max_tokens,
        student=describe_student(trained.layers),
        data="\n".join(data_rows(datasets, trained.texts)),
        noise="\n".join(describe_noise(datasets)),
        trained=Template(TRAINING[is_student]).substitute(task=manifest.task.name),
        seed=trained.config.seed,
        notes=trained.notes,
        kind=storage,
        storage=STORAGE[storage],
        figures=classification_table(figures.measured),
        command=COMMAND.format(name=manifest.name),
        crossfit=", ".join(f"{name} {error:.3f}" for name, error in figures.crossfit.items()),
        parity="\n\n".join(parity),
        compared="" if teacher is None else compare_with_teacher(manifest, teacher),
        genres=genre_table(figures.genres),
        unseen=left_out_section(figures.unseen),
    )


def data_rows(datasets: Sequence[Dataset], texts: Sequence[Dataset]) -> list[str]:
    """Return the rows of the table of training data."""
    rows = [
        f"| {d.name} | {d.language} | {d.licence} | {d.assumed or ', '.join(d.labels)} | {d.genre} | {d.share:g} "
        f"| {origin_of(d)} |"
        for d in datasets
    ]
    return rows + [
        f"| {d.name} | {d.language} | {d.licence} | none | {d.genre} | {d.share:g} | all texts |" for d in texts
    ]


def origin_of(dataset: Dataset) -> str:
    """Return where the rows of a source are from."""
    if dataset.fillings:
        return f"grammar, {dataset.fillings} fillings of a template"
    return "all texts" if dataset.assumed else "train file"


def genre_table(genres: Sequence[GenreCalibration]) -> str:
    """Return a section with the calibration of each genre, or nothing without genres."""
    if not genres:
        return ""
    rows = [f"| {g.genre} | {g.rows:,} | {g.accuracy:.3f} | {g.ece:.3f} | {g.wrong_confidence:.3f} |" for g in genres]
    head = ["| genre | rows | accuracy | ECE | confidence of wrong answers |", "|---|--:|--:|--:|--:|"]
    return "\n".join(("Calibration by genre, over the validation rows of all its data sets:", "", *head, *rows, ""))


def left_out_section(unseen: Sequence[ClassificationReport]) -> str:
    """Return a section with the figures of sources that a run was trained without, or nothing without such runs."""
    if not unseen:
        return ""
    mean = sum(report.macro_f1 for report in unseen) / len(unseen)
    return "\n".join(
        (
            "## Sources left out",
            "Runs of the same recipe, each without some sources, answered the validation rows of these sources. These",
            "figures say more of texts unlike those of training. The calibration is fitted on these answers too.",
            "",
            classification_table(unseen),
            "",
            f"Mean macro-F1 {mean:.3f}. Reproduce with `heed train sentiment --without SOURCE` and",
            "`heed export RUN --left-out RUN`.",
            "",
        )
    )


def describe_noise(datasets: Sequence[Dataset]) -> list[str]:
    return [
        f"The labels of {d.name} are noisy. It was trained with label smoothing {d.smoothing:g} (Szegedy et al. 2016) "
        f"and soft bootstrapping {d.bootstrap:g} (Reed et al. 2015)."
        for d in datasets
        if d.smoothing or d.bootstrap
    ]


def describe_student(layers: Sequence[int] | None) -> str:
    if layers is None:
        return ""
    names = ", ".join(str(layer + 1) for layer in layers)
    return (
        f"- A student: its {len(layers)} layers started as the layers {names} of a fine-tuned teacher. They learned\n"
        "  the teacher's softened answers (Hinton et al. 2015), the states of those layers (Sun et al. 2019) and the\n"
        "  labels. Training rounded as the served graph does, from the first step.\n"
    )


def compare_with_teacher(student: Manifest, teacher: Bundle) -> str:
    """Return a section with the macro-F1 of student and teacher, from the figures that each bundle carries."""
    taught = {metric.dataset: metric.value for metric in teacher.metrics if metric.name == "macro_f1"}
    pairs = [
        (metric.dataset, taught[metric.dataset], metric.value)
        for metric in student.metrics
        if metric.name == "macro_f1" and metric.dataset in taught
    ]
    means = [sum(values) / len(pairs) for values in zip(*(scores for _, *scores in pairs), strict=True)]
    lines = [
        f"| {name} | {before:.3f} | {after:.3f} | {after - before:+.3f} |"
        for name, before, after in (*pairs, ("mean", *means))
    ]
    return "\n".join(
        (
            "",
            "## Teacher and student",
            f"Macro-F1 beside the teacher, `{teacher.name}` {teacher.version}, each from the graph that serves. The",
            f"teacher's figures: `{COMMAND.format(name=teacher.path.name)}`.",
            "",
            "| data set | teacher | student | difference |",
            "|---|--:|--:|--:|",
            *lines,
            "",
        )
    )
