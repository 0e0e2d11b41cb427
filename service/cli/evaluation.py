"""`heed evaluate` and `heed faithfulness`: measure a bundle on validation files and by capability tests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from models.explain.methods import FEATURE_NOUNS, ExplainableTask
from models.tasks import TASKS
from service.cli.command import (
    DataFolder,
    GroupWithDefault,
    examples,
    fail,
    log,
    require_packages,
    require_runtime,
    task_argument,
)

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.evaluation.explanation_samples import Change, InstancesBySet, TaskName
    from models.evaluation.faithfulness import FaithfulnessReport
    from models.explain.explainer import Explainer
    from models.runtime.protocol import Device

_BundleFolder = Annotated[Path | None, typer.Option(help="Folder of the bundle. The default is the shipped one.")]


_Device = Annotated[Literal["cpu", "cuda"], typer.Option(help="Where a model of sentiment or intents runs.")]


class FilesOrCommand(GroupWithDefault):
    """A group that measures on validation files when no command is named."""

    default = "files"


evaluate = typer.Typer(
    cls=FilesOrCommand,
    help="Measure a bundle, from the graph that serves. heed evaluate intent is short for heed evaluate files intent.",
)


@evaluate.command("files", epilog=examples("heed evaluate files intent --data DATA --bundle models/bundles/my-intent"))
def evaluate_files(
    task: Annotated[str, task_argument("Task of the model.", *TASKS)] = "sentiment",
    *,
    data: DataFolder,
    bundle: _BundleFolder = None,
    out: Annotated[Path, typer.Option(help="Folder for the table, the JSON file and the confusion matrices.")] = Path(
        "runs/evaluation"
    ),
    device: _Device = "cpu",
) -> None:
    """Measure a bundle on the validation files, from the graph that serves.

    The files of --data are those of heed train, and docs/training.md describes them all.
    """
    from models.bundle import SHIPPED_BUNDLES, BundleError, load_bundle
    from models.prediction.tensor_file import ArtifactError

    require_runtime(device)
    try:
        loaded = load_bundle(bundle or SHIPPED_BUNDLES[task])
        table = _evaluate(loaded, data, out, device)
    except (BundleError, ArtifactError, OSError, RuntimeError) as error:
        fail(error)
    print(
        f"{loaded.name} {loaded.version}, {loaded.graph.name} on {device}, validation files\n\n{table}\n\nWrote {out}"
    )


@evaluate.command(
    "behaviour", epilog=examples("heed evaluate behaviour --bundle models/bundles/mine --out runs/behaviour")
)
def evaluate_behaviour(
    bundle: _BundleFolder = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of data sets whose validation texts get noise too.", exists=True, file_okay=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the tables and the JSON file.")] = Path("runs/behaviour"),
    per_template: Annotated[int, typer.Option(help="Fillings of each held-out template.", min=1)] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the fillings, the noise and the samples.")] = 0,
    device: _Device = "cpu",
    card: Annotated[bool, typer.Option(help="Write the tables into the bundle's card too.")] = False,
) -> None:
    """Run the capability tests on a model of sentiment: negation, direction, roles, noise, long texts, fairness.

    Their texts come from the held-out side of the grammars that ship, so no data is needed.
    """
    from models.behaviour.report import behaviour_table, write_behaviour
    from models.behaviour.suite import run_suite
    from models.bundle import SHIPPED, BundleError, load_bundle

    require_runtime(device)
    try:
        loaded = load_bundle(bundle or SHIPPED)
        if loaded.task.name != "sentiment":
            fail(f"{loaded.name} is a model of {loaded.task.name}, not of sentiment", 2)
        report = run_suite(loaded, per_template, seed, data, device)
        write_behaviour(report, out)
        if card:
            from models.export.card_sections import record_behaviour

            record_behaviour(loaded, report)
    except (BundleError, OSError, RuntimeError, ValueError) as error:
        fail(error)
    print(
        f"{loaded.name} {loaded.version}, {loaded.graph.name} on {device}, {per_template} fillings a template\n\n"
        f"{behaviour_table(report)}\n\nWrote {out}"
    )


def _evaluate(bundle: Bundle, data: Path, out: Path, device: Device) -> str:
    """Measure a bundle, write the figures and return them as a table."""
    if bundle.task.name == "recommend":
        from models.evaluation.recommendation import evaluate_recommender, recommendation_table, write_recommendation

        if device != "cpu":
            fail("heed evaluate recommend ranks vectors that the bundle stores, so --device changes nothing")
        recommendation = evaluate_recommender(bundle, data)
        write_recommendation(recommendation, out)
        return recommendation_table(recommendation)
    if bundle.task.name == "intent":
        from models.evaluation.intent import evaluate_intent_bundle, intents_table, write_intents

        intents = evaluate_intent_bundle(bundle, data, device)
        write_intents(intents, out)
        return intents_table(intents)
    from models.evaluation.classification import classification_table, evaluate_classifier, write_classification

    require_packages("a confusion matrix", "matplotlib")
    classification = evaluate_classifier(bundle, data, device)
    write_classification(classification, bundle.task, out)
    return classification_table(classification)


def faithfulness(
    task: Annotated[ExplainableTask, typer.Argument(help="Task whose explanations are measured.")] = "sentiment",
    *,
    data: DataFolder,
    bundle: _BundleFolder = None,
    rows: Annotated[int, typer.Option(help="Validation rows per data set.", min=1)] = 40,
    stable_rows: Annotated[
        int,
        typer.Option(help="Rows whose weights are compared with those in fp32 and of slightly changed texts.", min=0),
    ] = 10,
    out: Annotated[Path, typer.Option(help="Folder for the tables, the JSON files and the curves.")] = Path(
        "runs/faithfulness"
    ),
    card: Annotated[bool, typer.Option(help="Write the tables and the curves into the bundle's card too.")] = False,
) -> None:
    """Measure how far each explanation method can be trusted.

    A method is faithful if the answer changes most without the words that it weighs most. The files of --data are those
    of heed train, and docs/training.md describes them all.
    """
    from models.bundle import SHIPPED_BUNDLES, BundleError, load_bundle
    from models.export import card_sections

    require_runtime()
    require_packages("heed faithfulness", "matplotlib", *(["onnx"] if stable_rows and task != "recommend" else []))
    model = "intent" if task == "replies" else task
    try:
        loaded = load_bundle(bundle or SHIPPED_BUNDLES[model])
        if loaded.task.name != model:
            fail(f"{loaded.name} is a model of {loaded.task.name}, not of {model}", 2)
        if task == "recommend":
            report_measurements(_measure_histories(loaded, data, rows), loaded, task, rows, out)
        else:
            _measure_texts(task, loaded, data, rows, stable_rows, out)
        if card:
            card_sections.record_faithfulness(loaded, task, rows, out)
    except (BundleError, OSError, ValueError) as error:
        fail(error)
    print(f"Wrote {out}")


def _measure_texts(task: TaskName, bundle: Bundle, data: Path, rows: int, stable_rows: int, out: Path) -> None:
    """Measure the faithfulness and, on some rows, the stability of explanations of texts."""
    from models.evaluation import stability
    from models.evaluation.explanation_samples import unchanged
    from models.evaluation.faithfulness import measure_faithfulness
    from models.explain.explainer import open_explainer

    explainer = open_explainer(bundle)
    sample = partial(_sample, task, explainer, bundle, data)
    report_measurements(measure_faithfulness(explainer, sample(unchanged), rows), bundle, task, rows, out)
    if stable_rows:
        with TemporaryDirectory() as folder:
            exact = stability.open_fp32_explainer(bundle, Path(folder))
            reports = list(stability.measure_stability(explainer, exact, sample, stable_rows))
        stability.write_stability(reports, out)
        print(f"{stability.stability_table(reports)}\n")


def report_measurements(
    measured: Iterable[FaithfulnessReport], bundle: Bundle, task: ExplainableTask, rows: int, out: Path
) -> None:
    """Log each measurement as it comes, then print all of them and write them to the folder."""
    from models.evaluation.faithfulness import faithfulness_table, write_faithfulness

    reports = []
    for report in measured:
        reports.append(report)
        log(f"{report.dataset}, {report.method}: {report.rows} rows")
    if not reports:
        fail(f"the data holds none of the sets that {bundle.name} is measured on", 2)
    write_faithfulness(reports, FEATURE_NOUNS[task], out)
    print(
        f"{bundle.name} {bundle.version}, {task}, {rows} validation rows a set\n\n{faithfulness_table(reports)}\n",
        flush=True,
    )


def _measure_histories(bundle: Bundle, data: Path, rows: int) -> Iterator[FaithfulnessReport]:
    from threadpoolctl import threadpool_limits

    from models.evaluation.explanation_samples import history_instances
    from models.evaluation.faithfulness import measure_methods
    from models.explain.history import HISTORY_METHODS, attribute_history

    with threadpool_limits(1):  # as in the service: products this small are slower on several threads
        yield from measure_methods(attribute_history, HISTORY_METHODS, history_instances(bundle, data), rows)


def _sample(
    task: TaskName, explainer: Explainer, bundle: Bundle, data: Path, change: Change
) -> Iterator[InstancesBySet]:
    from models.data.dialogues import load_shipped_sets
    from models.evaluation import explanation_samples as samples
    from models.evaluation.classification import datasets_of
    from models.prediction.intent_head import load_bundle_heads
    from models.prediction.reply_ranker import RANKER, load_ranker

    label_sets, reply_sets = load_shipped_sets()
    if task == "sentiment":
        return samples.text_instances(explainer, data, datasets_of(bundle, data), change)
    if task == "intent":
        heads = load_bundle_heads(bundle.path, bundle.encoder_digest)
        return samples.intent_instances(explainer, data, label_sets, heads, change)
    return samples.reply_instances(explainer, data, reply_sets, load_ranker(bundle.path / RANKER), change)
