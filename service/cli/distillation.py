"""`heed answers` and `distill`: what a teacher knows, kept in a file, and a student that learns it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from models.tasks import TASKS
from service.cli.command import (
    TRAINING_PACKAGES,
    UNUSABLE,
    ConfigFile,
    DataFolder,
    RunFolder,
    TrackedBy,
    fail,
    log,
    open_tracker,
    report_run,
    require_packages,
    task_argument,
)

DISTILLED = [name for name in TASKS if name != "recommend"]


def answers(
    run: Annotated[
        Path, typer.Argument(help="Folder that heed train sentiment wrote: the teacher.", exists=True, file_okay=False)
    ],
    data: DataFolder,
    out: Annotated[Path, typer.Option(help="File for the answers, NAME.safetensors. An existing one is completed.")],
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Folder of texts without labels, NAME.txt.gz with one text per line.", exists=True, file_okay=False
        ),
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Compute a teacher's answers to all training rows of a student, and keep them in a file.

    The configuration is the student's. It names the data sets and texts. Run the same command again to resume.
    """
    require_packages("training", *TRAINING_PACKAGES)
    from models.data.sources import source_files
    from models.data.training_files import require_files, text_files
    from models.training.classification import CONFIGS, read_task
    from models.training.distillation import read_distillation_config
    from models.training.teacher_answers import answer_rows
    from models.training.trainer import require_run

    try:
        require_run(run)
        settings = read_distillation_config(config or CONFIGS / f"{read_task(run)}-student.toml")
        unlabelled = () if texts is None else settings.texts
        folder = data if texts is None else texts
        names = (source.name for source in unlabelled)
        require_files([*source_files(data, settings.training.datasets), *text_files(folder, names)])
        count = answer_rows(run, settings.training, unlabelled, data, folder, out, log)
    except UNUSABLE as error:
        fail(error, 2)
    print(f"Wrote {out} with the answers to {count} rows.")


def distill(
    task: Annotated[str, task_argument("Task of the teacher.", *DISTILLED)],
    teacher: Annotated[Path, typer.Option(help="Folder that heed train wrote.", exists=True, file_okay=False)],
    data: DataFolder,
    out: RunFolder,
    texts: Annotated[
        Path | None,
        typer.Option(
            help="Sentiment: folder of texts without labels, NAME.txt.gz with one text per line.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    config: ConfigFile = None,
    track: TrackedBy = None,
    known: Annotated[
        list[Path] | None,
        typer.Option(
            "--answers",
            help="Sentiment: file of heed answers instead of a teacher at each step. Repeatable; several are averaged.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Train a shallower student on the answers of a fine-tuned teacher. Run the same command again to resume.

    The files of --data are those of heed train, and docs/training.md describes them all.
    """
    if task != "intent" and texts is None:
        fail("--texts is needed", 2)
    require_packages("training", *TRAINING_PACKAGES)
    from models.training.classification import CONFIGS

    tracker = open_tracker(track)
    try:
        if texts is None or task == "intent":
            _distill_intents(config or CONFIGS / "intent.toml", teacher, data, out, tracker)
        else:
            path = config or CONFIGS / f"{task}-student.toml"
            _distill_classifier(path, teacher, data, texts, out, tracker, known or [])
    except UNUSABLE as error:
        fail(error, 2)
    report_run(task, data, out)


def _distill_classifier(
    config: Path, teacher: Path, data: Path, texts: Path, out: Path, tracker: Any, answers: list[Path]
) -> None:
    from models.data.sources import source_files
    from models.data.training_files import require_files, text_files
    from models.training.distillation import distill_classifier, read_distillation_config
    from models.training.teacher_answers import load_answers
    from models.training.trainer import require_run

    settings = read_distillation_config(config)
    require_run(teacher)
    unlabelled = text_files(texts, (source.name for source in settings.texts))
    require_files([*source_files(data, settings.training.datasets), *unlabelled])
    lookup = load_answers(answers).lookup if answers else None
    distill_classifier(settings, teacher, data, texts, out, tracker, lookup)


def _distill_intents(config: Path, teacher: Path, data: Path, out: Path, tracker: Any) -> None:
    from models.data.training_files import dialogue_folders, require_files
    from models.training.intent import distill_intents
    from models.training.intent_batches import read_intent_config
    from models.training.trainer import require_run

    settings, student = read_intent_config(config)
    require_run(teacher)
    require_files(dialogue_folders(data, (*settings.label_sets, *settings.reply_sets)))
    distill_intents(settings, student, teacher, data, out, tracker)
