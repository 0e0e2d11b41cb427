"""`heed faithfulness`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from models.explain.methods import FEATURE_NOUNS, ExplainableTask
from service.cli.exit import fail, say

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.evaluation.explanation_samples import Change, InstancesBySet, TaskName
    from models.evaluation.faithfulness import FaithfulnessReport
    from models.explain.explainer import Explainer


def faithfulness(
    task: Annotated[ExplainableTask, typer.Argument(help="Whose answers.")] = "sentiment",
    *,
    data: Annotated[Path, typer.Option(help="Folder with a folder for each data set.", exists=True, file_okay=False)],
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle (the shipped one).")] = None,
    rows: Annotated[int, typer.Option(help="Validation rows of each data set.", min=1)] = 40,
    stable_rows: Annotated[
        int, typer.Option(help="Rows on which weights are compared with those in fp32 and of changed texts.", min=0)
    ] = 10,
    out: Annotated[Path, typer.Option(help="Folder for the tables, the JSON and the curves.")] = Path(
        "runs/faithfulness"
    ),
    card: Annotated[bool, typer.Option(help="Put the tables and the curves into the bundle's card too.")] = False,
) -> None:
    """Measure which explanations to trust: whether the words they weigh most are those that answers rest on."""
    from models.bundle import SHIPPED_BUNDLES, BundleError, load_bundle
    from models.evaluation import stability
    from models.evaluation.explanation_samples import unchanged
    from models.evaluation.faithfulness import measure_faithfulness
    from models.explain.explainer import open_explainer
    from models.export import card_explanations

    model = "intent" if task == "replies" else task
    try:
        loaded = load_bundle(bundle or SHIPPED_BUNDLES[model])
        if loaded.task.name != model:
            fail(f"{loaded.name} is a model of {loaded.task.name}", 2)
        if task == "recommend":
            report_measurements(_measured_histories(loaded, data, rows), loaded, task, rows, out)
        else:
            explainer = open_explainer(loaded)
            ask = partial(_asked, task, explainer, loaded, data)
            report_measurements(measure_faithfulness(explainer, ask(unchanged), rows), loaded, task, rows, out)
            if stable_rows:
                with TemporaryDirectory() as folder:
                    exact = stability.open_fp32_explainer(loaded, Path(folder))
                    alike = list(stability.measure_stability(explainer, exact, ask, stable_rows))
                stability.write_stability(alike, out)
                print(f"{stability.stability_table(alike)}\n")
        if card:
            card_explanations.record_faithfulness(loaded, task, rows, out)
    except (BundleError, OSError, ValueError) as error:
        fail(error)
    print(f"Wrote {out}")


def report_measurements(
    measured: Iterable[FaithfulnessReport], bundle: Bundle, task: ExplainableTask, rows: int, out: Path
) -> None:
    """As they come, and all of them at the end, to the terminal and the folder."""
    from models.evaluation.faithfulness import faithfulness_table, write_faithfulness

    found = []
    for row in measured:
        found.append(row)
        say(f"{row.dataset}, {row.method}: {row.rows} rows")
    if not found:
        fail(f"the data holds none of the sets that {bundle.name} is measured on", 2)
    write_faithfulness(found, FEATURE_NOUNS[task], out)
    print(
        f"{bundle.name} {bundle.version}, {task}, {rows} validation rows a set\n\n{faithfulness_table(found)}\n",
        flush=True,
    )


def _measured_histories(bundle: Bundle, data: Path, rows: int) -> Iterator[FaithfulnessReport]:
    from threadpoolctl import threadpool_limits

    from models.evaluation.explanation_samples import history_instances
    from models.evaluation.faithfulness import measure_methods
    from models.explain.history import HISTORY_METHODS, attribute_history

    with threadpool_limits(1):  # as it is served; products so small are slower on several
        yield from measure_methods(attribute_history, HISTORY_METHODS, history_instances(bundle, data), rows)


def _asked(
    task: TaskName, explainer: Explainer, bundle: Bundle, data: Path, change: Change
) -> Iterator[InstancesBySet]:
    from models.data.dialogues import load_shipped_sets
    from models.evaluation import explanation_samples as asked
    from models.evaluation.classification import datasets_of
    from models.prediction.intent_head import load_bundle_heads
    from models.prediction.reply_ranker import RANKER, load_ranker

    label_sets, reply_sets = load_shipped_sets()
    if task == "sentiment":
        return asked.text_instances(explainer, data, datasets_of(bundle, data), change)
    if task == "intent":
        return asked.intent_instances(
            explainer, data, label_sets, load_bundle_heads(bundle.path, bundle.encoder_digest), change
        )
    return asked.reply_instances(explainer, data, reply_sets, load_ranker(bundle.path / RANKER), change)
