"""`heed train`, `distill`, `export` and `evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from models.tasks import TASKS
from service.cli.exit import fail
from service.cli.heads import train_head


def _task_argument(description: str, *names: str) -> Any:
    def parse(value: str) -> str:
        if value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}")
        return value

    return typer.Argument(help=description, parser=parse, metavar="|".join(names))


_DISTILLED = [name for name in TASKS if name != "recommend"]


def train(
    task: Annotated[str, _task_argument("What to learn.", *TASKS)],
    data: Annotated[
        Path, typer.Option(help="Folder with a folder for each data set; with --label-set a .jsonl.", exists=True)
    ],
    base: Annotated[
        str | None, typer.Option(help="Encoder to start from: a folder in the transformers format, or a hub name.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for weights, checkpoints and TensorBoard files; with --label-set a file."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration (the shipped one of the task).")] = None,
    label_set: Annotated[
        str | None, typer.Option(help="Intent: learn intents of your own, under this name, on the model as it is.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="With --label-set: the intent model (HEED_INTENT_BUNDLE).")
    ] = None,
    full: Annotated[
        bool,
        typer.Option(help="With --label-set: teach the encoder too, from --base with the sets of --sets, into --out."),
    ] = False,
    sets: Annotated[
        Path | None, typer.Option(help="With --full: folder of the configuration's data sets.", file_okay=False)
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="Recommend: folder with the texts that are no items.", file_okay=False)
    ] = None,
    rejection_rate: Annotated[
        float, typer.Option(help="With --label-set: share of texts in scope to turn away.", min=0.0, max=0.5)
    ] = 0.05,
) -> None:
    """Fine-tune a model; run again after a kill, it goes on from its newest checkpoint.

    heed train intent --label-set my-team --data my.jsonl takes seconds and no torch: it learns a head on the model.
    """
    if label_set is not None:
        if task != "intent":
            fail("--label-set is for intents: heed train intent --label-set NAME --data FILE", 2)
        if not full:
            train_head(label_set, data, out or Path(f"{label_set}.head.safetensors"), bundle, rejection_rate)
            return
        if sets is None:
            fail("--sets is needed to teach the encoder too", 2)
    if base is None or out is None:
        fail("--base and --out are needed to train an encoder", 2)
    from models.data.user_files import DataError
    from models.training.classification import CONFIGS, read_config
    from models.training.classification import train_classifier as fine_tune
    from models.training.intent import train_intents
    from models.training.intent_batches import add_user_examples, read_intent_config
    from models.training.recommendation import read_recommend_config, train_recommend
    from models.training.trainer import ConfigError

    path = config or CONFIGS / f"{task}.toml"
    try:
        if TASKS[task].kind == "classification":
            fine_tune(read_config(path), base, data, out)
        elif task == "recommend":
            if texts is None:
                fail("--texts is needed to train a recommender", 2)
            train_recommend(read_recommend_config(path), base, data, texts, out)
        elif label_set is not None and sets is not None:
            data, own = sets, data
            train_intents(add_user_examples(read_intent_config(path)[0], label_set, own), base, data, out)
        else:
            train_intents(read_intent_config(path)[0], base, data, out)
    except (ConfigError, DataError, OSError) as error:
        fail(error, 2)
    print(f"Trained. Make a bundle of it: heed export {out} --data {data} --out models/bundles/{task}")


def distill(
    task: Annotated[str, _task_argument("What the model answers.", *_DISTILLED)],
    teacher: Annotated[Path, typer.Option(help="The folder that `heed train` wrote.", exists=True, file_okay=False)],
    data: Annotated[Path, typer.Option(help="Folder with a folder for each data set.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder for weights, checkpoints and TensorBoard files.")],
    texts: Annotated[
        Path | None, typer.Option(help="Sentiment: folder with the texts without labels.", exists=True, file_okay=False)
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Configuration (the shipped one of the task).")] = None,
) -> None:
    """Teach a shallower model what a fine-tuned one knows; resumes like `train`."""
    from models.training.classification import CONFIGS
    from models.training.distillation import distill_classifier as teach
    from models.training.distillation import read_distillation_config
    from models.training.intent import distill_intents
    from models.training.intent_batches import read_intent_config
    from models.training.trainer import ConfigError

    try:
        if task == "intent":
            distill_intents(*read_intent_config(config or CONFIGS / "intent.toml"), teacher, data, out)
        elif texts is None:
            fail("--texts is needed", 2)
        else:
            teach(read_distillation_config(config or CONFIGS / f"{task}-student.toml"), teacher, data, texts, out)
    except (ConfigError, OSError) as error:
        fail(error, 2)
    print(f"Trained. Make a bundle of it: heed export {out} --data {data} --out models/bundles/{task}")


def export(
    run: Annotated[
        Path,
        typer.Argument(
            help="The folder that `heed train` wrote; or a bundle of intents, to make its heads anew.",
            exists=True,
            file_okay=False,
        ),
    ],
    data: Annotated[Path, typer.Option(help="Folder with a folder for each data set.", exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder of the bundle; it is replaced.")],
    version: Annotated[str, typer.Option(help="Version of the bundle.")] = "1.0.0",
    storage: Annotated[
        Literal["int8", "mixed", "fp32"],
        typer.Option(help="Of the graph's matrices: int8, mixed (16 bits) or fp32."),
    ] = "int8",
    teacher: Annotated[Path | None, typer.Option(help="The teacher's bundle, for the card of a student.")] = None,
    head: Annotated[list[str] | None, typer.Option(help="Of a bundle of intents: this head alone; repeatable.")] = None,
) -> None:
    """Make a bundle that serves, unless its answers drift from the trained network's."""
    from models.bundle import MANIFEST, BundleError, load_bundle
    from models.export.classification import export_classifier as make
    from models.export.intent import export_heads, export_intents
    from models.export.parity import ParityError
    from models.export.recommendation import export_recommend
    from models.training.classification import read_task

    try:
        task = "" if (run / MANIFEST).is_file() else read_task(run)
        if not task:
            bundle = export_heads(run, data, out, version, head or (), print)
        elif task == "intent":
            bundle = export_intents(run, data, out, version, print)
        elif task == "recommend":
            bundle = export_recommend(run, data, out, version, print)
        else:
            bundle = make(run, data, out, version, storage, None if teacher is None else load_bundle(teacher), print)
    except (BundleError, ParityError, ValueError, OSError) as error:
        fail(error)
    print(f"Wrote {bundle.path}; its figures are in {bundle.path / 'CARD.md'}")


def evaluate(
    task: Annotated[str, _task_argument("Which model.", *TASKS)] = "sentiment",
    *,
    data: Annotated[Path, typer.Option(help="Folder with a folder for each data set.", exists=True, file_okay=False)],
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle (the shipped one).")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the table, the JSON and the confusion matrices.")] = Path(
        "runs/evaluation"
    ),
    device: Annotated[
        Literal["cpu", "cuda"], typer.Option(help="Where the model runs; of sentiment and intent.")
    ] = "cpu",
) -> None:
    """Measure a bundle on the validation files, as it serves."""
    from models.bundle import SHIPPED_BUNDLES, BundleError, load_bundle
    from models.evaluation.classification import classification_table, write_classification
    from models.evaluation.classification import evaluate_classifier as measure
    from models.evaluation.intent import evaluate_intent_bundle, intents_table, write_intents
    from models.evaluation.recommendation import evaluate_recommender, recommend_table, write_recommender
    from models.prediction.tensor_file import ArtifactError

    try:
        loaded = load_bundle(bundle or SHIPPED_BUNDLES[task])
        if loaded.task.name == "recommend":
            if device != "cpu":
                fail("heed evaluate recommend ranks vectors that the bundle stores, which no device changes")
            taken = evaluate_recommender(loaded, data)
            write_recommender(taken, out)
            shown = recommend_table(taken)
        elif loaded.task.name == "intent":
            found = evaluate_intent_bundle(loaded, data, device)
            write_intents(found, out)
            shown = intents_table(found)
        else:
            measured = measure(loaded, data, device)
            write_classification(measured, loaded.task, out)
            shown = classification_table(measured)
    except (BundleError, ArtifactError, OSError, RuntimeError) as error:
        fail(error)
    print(
        f"{loaded.name} {loaded.version}, {loaded.graph.name} on {device}, validation files\n\n{shown}\n\nWrote {out}"
    )
