"""`heed train`, `export` and `base`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from models.tasks import TASKS
from service.cli.command import (
    TRAINING_PACKAGES,
    UNUSABLE,
    ConfigFile,
    DataFolder,
    TrackedBy,
    fail,
    open_tracker,
    report_run,
    require_packages,
    task_argument,
)
from service.cli.heads import train_head

_team_option = partial(typer.Option, rich_help_panel="Intents of your own (heed train intent --label-set)")

_TrainedTask = Annotated[str, task_argument("What to train.", *TASKS)]
_DataPath = Annotated[
    Path, typer.Option(help="Folder of data sets. With --label-set, a .jsonl or .jsonl.gz file.", exists=True)
]
_Base = Annotated[
    str | None,
    typer.Option(help="Encoder to start from: a folder in the layout of transformers, or a name on the hub."),
]
_RunPath = Annotated[
    Path | None,
    typer.Option(
        help="Folder to write weights, checkpoints and TensorBoard files to. With --label-set, a file for the head."
    ),
]
_LabelSet = Annotated[str | None, _team_option(help="Fit a head for your intents under this name.")]
_IntentBundle = Annotated[Path | None, _team_option(help="Intent model to fit the head on (HEED_INTENT_BUNDLE).")]
_RejectionRate = Annotated[
    float, _team_option(help="Share of in-scope texts that the threshold may reject.", min=0.0, max=0.5)
]
_Full = Annotated[bool, _team_option(help="Train the encoder too. This needs --base, --sets and --out.")]
_Sets = Annotated[
    Path | None, _team_option(help="With --full: folder of the configuration's data sets.", file_okay=False)
]
_Without = Annotated[
    list[str] | None,
    typer.Option(
        help="Sentiment: leave out the sources whose names begin so, and measure the model on them. Repeatable."
    ),
]
_Start = Annotated[
    Path | None,
    typer.Option(help="Sentiment: training folder of the same base whose weights come first.", file_okay=False),
]
_OtherTexts = Annotated[
    Path | None,
    typer.Option(
        help="Folder of texts that are no items, NAME.txt.gz with one text per line.",
        file_okay=False,
        rich_help_panel="Recommendation",
    ),
]


def train(
    task: _TrainedTask,
    data: _DataPath,
    base: _Base = None,
    out: _RunPath = None,
    config: ConfigFile = None,
    label_set: _LabelSet = None,
    bundle: _IntentBundle = None,
    rejection_rate: _RejectionRate = 0.05,
    full: _Full = False,
    sets: _Sets = None,
    texts: _OtherTexts = None,
    without: _Without = None,
    start: _Start = None,
    track: TrackedBy = None,
) -> None:
    """Fine-tune a model. Run the same command again to resume after an interruption.

    The files of --data depend on the task, and docs/training.md describes them all.

    sentiment: NAME/train.jsonl.gz and NAME/validation.jsonl.gz for each data set, rows {"text", "label"} with an
    optional "entity".

    intent: the folders that the configuration names. With --label-set, one file with rows {"text", "label"} or
    {"turns", "label"}. Fitting a head takes seconds and needs no torch.

    recommend: online_retail/items.jsonl.gz and online_retail/interactions.csv.gz.
    """
    if label_set is not None and task != "intent":
        fail("--label-set is for intents: heed train intent --label-set NAME --data FILE", 2)
    if label_set is not None and not full:
        if track is not None:
            fail("--track is for training an encoder, and fitting a head has no steps", 2)
        train_head(label_set, data, out or Path(f"{label_set}.head.safetensors"), bundle, rejection_rate)
        return
    if label_set is not None and sets is None:
        fail("--sets is needed to train the encoder too", 2)
    if base is None or out is None:
        fail("--base and --out are needed to train an encoder", 2)
    if task == "recommend" and texts is None:
        fail("--texts is needed to train a recommender", 2)
    folder = data if sets is None or label_set is None else sets
    try:
        path = _prepare(task, base, config)
        tracker = open_tracker(track)
        if TASKS[task].kind == "classification":
            _train_classifier(path, base, folder, out, without or [], tracker, start)
        elif texts is not None and task == "recommend":
            _train_recommender(path, base, folder, texts, out, tracker)
        else:
            _train_intent(path, base, folder, out, label_set, data, tracker)
    except UNUSABLE as error:
        fail(error, 2)
    report_run(task, folder, out)


def _prepare(task: str, base: str, config: Path | None) -> Path:
    """Check what every training needs, and return its configuration."""
    require_packages("training", *TRAINING_PACKAGES)
    from models.networks.base_encoder import check_base_encoder
    from models.training.classification import CONFIGS

    check_base_encoder(base)
    return config or CONFIGS / f"{task}.toml"


def _train_classifier(
    config: Path, base: str, data: Path, out: Path, without: list[str], tracker: Any, start: Path | None
) -> None:
    from models.data.sources import source_files
    from models.data.training_files import require_files
    from models.training.classification import read_config, train_classifier
    from models.training.trainer import WEIGHTS, ConfigError

    settings = read_config(config)
    require_files(source_files(data, settings.datasets))
    if start is not None and not (start / WEIGHTS).is_file():
        raise ConfigError(f"--start {start}: the folder holds no {WEIGHTS} of a finished training")
    train_classifier(settings, base, data, out, without, tracker, start)


def _train_intent(
    config: Path, base: str, data: Path, out: Path, label_set: str | None, examples: Path, tracker: Any
) -> None:
    """Train the encoder of intents. With a label set, `examples` are its rows beside the shipped data sets."""
    from models.data.training_files import dialogue_folders, require_files
    from models.training.intent import train_intents
    from models.training.intent_batches import add_user_examples, read_intent_config

    settings, _ = read_intent_config(config)
    if label_set is not None:
        settings = add_user_examples(settings, label_set, examples)
    require_files(dialogue_folders(data, (*settings.label_sets, *settings.reply_sets)))
    train_intents(settings, base, data, out, tracker)


def _train_recommender(config: Path, base: str, data: Path, texts: Path, out: Path, tracker: Any) -> None:
    from models.data.training_files import interaction_files, require_files, text_files
    from models.recommender_training.recommendation import read_recommend_config, train_recommend

    settings = read_recommend_config(config)
    require_files([*interaction_files(data), *text_files(texts, (source.name for source in settings.kept))])
    train_recommend(settings, base, data, texts, out, tracker=tracker)


def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="Folder that heed train or heed distill wrote. A bundle of intents gets new heads instead.",
            exists=True,
            file_okay=False,
        ),
    ],
    data: DataFolder,
    out: Annotated[Path, typer.Option(help="Folder of the bundle. An existing one is replaced.")],
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1.0.0",
    storage: Annotated[
        Literal["int8", "mixed", "fp32"],
        typer.Option(help="How sentiment stores matrices: in 8 bits, in 16 bits (mixed) or in 32 bits."),
    ] = "int8",
    teacher: Annotated[
        Path | None, typer.Option(help="Bundle of the teacher, which the card of a sentiment student compares with.")
    ] = None,
    left_out: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of a run with --without, for a sentiment card and calibration. Repeatable."),
    ] = None,
    head: Annotated[
        list[str] | None, typer.Option(help="For a bundle of intents: fit only this head. Repeatable.")
    ] = None,
) -> None:
    """Make a bundle that serves. An export fails if the graph's answers drift from the trained network's.

    The files of --data are those of heed train, and docs/training.md describes them all.
    """
    require_packages("export", *TRAINING_PACKAGES, "onnx", "matplotlib")
    from models.bundle import MANIFEST, BundleError
    from models.export.intent import export_heads
    from models.export.parity import ParityError

    try:
        if (run / MANIFEST).is_file():
            bundle = export_heads(run, data, out, version, head or (), print)
        else:
            bundle = _export_run(run, data, out, version, storage, teacher, left_out or [])
    except (BundleError, ParityError, *UNUSABLE) as error:
        fail(error)
    print(f"Wrote {bundle.path}. {bundle.path / 'CARD.md'} has its figures.")


def _export_run(
    run: Path,
    data: Path,
    out: Path,
    version: str,
    storage: Literal["int8", "mixed", "fp32"],
    teacher: Path | None,
    left_out: list[Path],
) -> Any:
    from models.bundle import load_bundle
    from models.export.classification import export_classifier
    from models.export.intent import export_intents
    from models.export.recommendation import export_recommend
    from models.training.classification import read_task
    from models.training.trainer import require_run

    require_run(run)
    task = read_task(run)
    if task == "intent":
        return export_intents(run, data, out, version, print)
    if task == "recommend":
        return export_recommend(run, data, out, version, print)
    compared = None if teacher is None else load_bundle(teacher)
    return export_classifier(run, data, out, version, storage, compared, print, left_out)


def base(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="New folder for the base encoder.")],
) -> None:
    """Write a base encoder from a bundle's weights, to start training from.

    The folder has the layout of Hugging Face transformers: config.json, model.safetensors, tokenizer.json and
    tokenizer_config.json.
    """
    require_packages("a base encoder", "torch", "transformers")
    from models.bundle import BundleError, load_bundle
    from models.export.base import export_base
    from models.networks.base_encoder import BaseEncoderError

    try:
        shape = export_base(load_bundle(bundle), out)
    except (BundleError, OSError) as error:
        fail(error)
    except BaseEncoderError as error:
        fail(error, 2)
    print(f"Wrote {out}: {shape}. Train with it: heed train sentiment --base {out} --data DATA --out runs/sentiment")
