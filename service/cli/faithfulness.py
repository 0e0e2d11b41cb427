"""`heed faithfulness`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from models.explain.methods import PARTS, Explained
from service.cli.exit import refuse, say

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.evaluation.explanation_samples import Asked, Change, TaskName
    from models.evaluation.faithfulness import Measured
    from models.explain.explainer import Explainer


def faithfulness(
    task: Annotated[Explained, typer.Argument(help="Whose answers.")] = "sentiment",
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
    from models.bundle import SHIPPED_BUNDLES, BundleError, load
    from models.evaluation import stability
    from models.evaluation.explanation_samples import unchanged
    from models.evaluation.faithfulness import measure
    from models.explain.explainer import explainer_of
    from models.export import card_explanations

    model = "intent" if task == "replies" else task
    try:
        loaded = load(bundle or SHIPPED_BUNDLES[model])
        if loaded.task.name != model:
            refuse(f"{loaded.name} is a model of {loaded.task.name}", 2)
        if task == "recommend":
            _tell(_measured_histories(loaded, data, rows), loaded, task, rows, out)
        else:
            explainer = explainer_of(loaded)
            ask = partial(_asked, task, explainer, loaded, data)
            _tell(measure(explainer, ask(unchanged), rows), loaded, task, rows, out)
            if stable_rows:
                with TemporaryDirectory() as folder:
                    exact = stability.in_fp32(loaded, Path(folder))
                    alike = list(stability.stability(explainer, exact, ask, stable_rows))
                stability.write(alike, out)
                print(f"{stability.table(alike)}\n")
        if card:
            card_explanations.record(loaded, task, rows, out)
    except (BundleError, OSError, ValueError) as error:
        refuse(error)
    print(f"Wrote {out}")


def _tell(measured: Iterable[Measured], bundle: Bundle, task: Explained, rows: int, out: Path) -> None:
    """As they come, and all of them at the end, to the terminal and the folder."""
    from models.evaluation.faithfulness import table, write

    found = []
    for row in measured:
        found.append(row)
        say(f"{row.dataset}, {row.method}: {row.rows} rows")
    if not found:
        refuse(f"the data holds none of the sets that {bundle.name} is measured on", 2)
    write(found, PARTS[task], out)
    print(f"{bundle.name} {bundle.version}, {task}, {rows} validation rows a set\n\n{table(found)}\n", flush=True)


def _measured_histories(bundle: Bundle, data: Path, rows: int) -> Iterator[Measured]:
    from threadpoolctl import threadpool_limits

    from models.evaluation.explanation_samples import recommendations
    from models.evaluation.faithfulness import measure_by
    from models.explain.history import METHODS, weigh

    with threadpool_limits(1):  # as it is served; products so small are slower on several
        yield from measure_by(weigh, METHODS, recommendations(bundle, data), rows)


def _asked(task: TaskName, explainer: Explainer, bundle: Bundle, data: Path, change: Change) -> Iterator[Asked]:
    from models.data.dialogues import shipped_sets
    from models.evaluation import explanation_samples as asked
    from models.evaluation.classification import datasets_of
    from models.prediction.intent_head import heads_of
    from models.prediction.reply_ranker import RANKER, load_ranker

    label_sets, reply_sets = shipped_sets()
    if task == "sentiment":
        return asked.texts(explainer, data, datasets_of(bundle, data), change)
    if task == "intent":
        return asked.intents(explainer, data, label_sets, heads_of(bundle.path, bundle.encoder), change)
    return asked.replies(explainer, data, reply_sets, load_ranker(bundle.path / RANKER), change)
