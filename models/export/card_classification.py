"""The model card of a bundle, in the model-card convention (Mitchell et al. 2019).

Every figure in a card comes from the evaluation and the export that made the bundle; the prose is in `cards/TASK.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Template

from models.bundle import Bundle, Manifest
from models.data.classification import Dataset
from models.evaluation.classification import COMMAND, ClassificationReport, classification_table
from models.export.card_template import load_template
from models.export.parity import Parity
from models.graph.writer import Precision
from models.training.classification import TrainingRun

STORED: dict[Precision, str] = {
    "int8": "8-bit word embeddings, 7-bit matrices with a scale for each output, multiplied in 8 bits",
    "mixed": "word embeddings in 8 bits a weight, the other matrices in 16, arithmetic in fp32",
    "fp16": "weights and arithmetic in 16 bits",
    "fp32": "weights and arithmetic in 32 bits",
}

TRAINED = {
    False: "Trained with `heed train $task --base BASE --data DATA --out OUT` and `models/configs/$task.toml`",
    True: "Distilled with `heed distill $task --teacher RUN --data DATA --texts TEXTS --out OUT` and "
    "`models/configs/$task-student.toml`",
}
"""By whether the network is a student."""


def render_classifier_card(
    manifest: Manifest,
    measured: Sequence[ClassificationReport],
    crossfit: Mapping[str, float],
    drifts: Mapping[str, Parity],
    trained: TrainingRun,
    teacher: Bundle | None,
    storage: Precision,
) -> str:
    """The card's text; `crossfit` is the cross-fitted calibration error of each data set."""
    datasets, is_student = trained.config.datasets, trained.layers is not None
    drift = [
        f"`{name}` against the trained network in fp32 (torch), all validation rows: {d.agreement:.2%} of labels "
        f"agree, the worst macro-F1 loss of a set is {d.f1_loss:.4f}, and a probability alone and in a batch of 32 "
        f"differs by at most {d.batch_change:.1e}."
        for name, d in drifts.items()
    ]
    return load_template(manifest.task.name).substitute(
        name=manifest.name,
        version=manifest.version,
        base=manifest.base,
        base_digest=manifest.base_digest,
        max_tokens=manifest.max_tokens,
        student=student(trained.layers),
        data="\n".join(data(datasets, trained.texts)),
        noise="\n".join(noise(datasets)),
        trained=Template(TRAINED[is_student]).substitute(task=manifest.task.name),
        seed=trained.config.seed,
        notes=trained.notes,
        kind=storage,
        storage=STORED[storage],
        figures=classification_table(measured),
        command=COMMAND.format(name=manifest.name),
        crossfit=", ".join(f"{name} {error:.3f}" for name, error in crossfit.items()),
        drift="\n\n".join(drift),
        compared="" if teacher is None else compare_with_teacher(manifest, teacher),
    )


def data(datasets: Sequence[Dataset], texts: Sequence[Dataset]) -> list[str]:
    rows = [f"| {d.name} | {d.language} | {d.licence} | {', '.join(d.labels)} | train file |" for d in datasets]
    return rows + [f"| {d.name} | {d.language} | {d.licence} | none | all texts |" for d in texts]


def noise(datasets: Sequence[Dataset]) -> list[str]:
    return [
        f"The labels of {d.name} are noisy: label smoothing {d.smoothing:g} (Szegedy et al. 2016) and soft "
        f"bootstrapping {d.bootstrap:g} (Reed et al. 2015)."
        for d in datasets
        if d.smoothing or d.bootstrap
    ]


def student(layers: Sequence[int] | None) -> str:
    if layers is None:
        return ""
    names = ", ".join(str(layer + 1) for layer in layers)
    return (
        f"- A student: its {len(layers)} layers began as the layers {names} of a fine-tuned teacher and learnt the\n"
        "  teacher's softened answers (Hinton et al. 2015), the states of those layers (Sun et al. 2019) and the\n"
        "  labels, rounding as the served graph does from the first step.\n"
    )


def compare_with_teacher(own: Manifest, teacher: Bundle) -> str:
    """Macro-F1 beside the teacher's, from the figures that each bundle carries."""
    known = {metric.dataset: metric.value for metric in teacher.metrics if metric.name == "macro_f1"}
    pairs = [(m.dataset, known[m.dataset], m.value) for m in own.metrics if m.name == "macro_f1" and m.dataset in known]
    means = [sum(values) / len(pairs) for values in zip(*((then, now) for _, then, now in pairs), strict=True)]
    lines = [
        f"| {name} | {then:.3f} | {now:.3f} | {now - then:+.3f} |" for name, then, now in (*pairs, ("mean", *means))
    ]
    return "\n".join(
        (
            "",
            "## Teacher and student",
            f"Macro-F1 beside the teacher, `{teacher.name}` {teacher.version}, each from the graph that serves; the",
            f"teacher's figures: `{COMMAND.format(name=teacher.path.name)}`.",
            "",
            "| data set | teacher | student | difference |",
            "|---|--:|--:|--:|",
            *lines,
            "",
        )
    )
