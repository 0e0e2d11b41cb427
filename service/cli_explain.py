"""`heed explain` and `heed faithfulness`: why a model answers so, of one text or of many, and how far to trust that."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from models.explain.methods import PARTS, Explained, SentimentMethod
from service.refusal import refuse

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.evaluation.explanation_samples import Asked, Change, TaskName
    from models.evaluation.faithfulness import Measured
    from models.evaluation.influential_words import Known
    from models.explain.explainer import Explainer, Explanation
    from models.prediction.intent_head import Head


class TextOrCommand(TyperGroup):
    """`heed explain "some text"` is `heed explain text "some text"`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if not args or args[0] in {*self.commands, "--help"} else ["text", *args])


explain = typer.Typer(
    cls=TextOrCommand, no_args_is_help=True, help="Which words answers rest on: heed explain TEXT, or of many texts."
)


@explain.command("text")
def explain_text(
    text: Annotated[str, typer.Argument(help="The text whose answer is to be explained.")],
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle (the shipped one).")] = None,
    entity: Annotated[str | None, typer.Option(help="Ask for the answer towards this company or thing.")] = None,
    method: Annotated[
        Literal["auto", SentimentMethod],
        typer.Option(help="How words are weighed; auto is the one measured to be best for its time."),
    ] = "auto",
    target: Annotated[str | None, typer.Option(help="Label to explain (the answer itself).")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with the coloured text to this file too.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture of the weights to this file too.")] = None,
) -> None:
    """Show which words an answer rests on: green speaks for it, red against it."""
    from models.bundle import SHIPPED, BundleError, load
    from models.explain.explainer import AUTO, explainer_of

    refuse_unless_utf_8(f"{text}{entity or ''}")
    try:
        loaded = load(bundle or SHIPPED)
        if not loaded.task.labels:
            refuse(f"{loaded.name} answers no fixed labels; what is explained is sentiment", 2)
        if target is not None and target not in loaded.task.labels:
            refuse(f"the target {target!r} is none of {', '.join(loaded.task.labels)}", 2)
        explainer = explainer_of(loaded)
        found = explainer.explain(explainer.text(text, entity, target), AUTO if method == "auto" else method)
        show(text, found, html, png)
    except (BundleError, OSError, ValueError) as error:
        refuse(error)


def refuse_unless_utf_8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        refuse("the text, or the entity, is not in UTF-8", 2)


def show(text: str, found: Explanation, html: Path | None, png: Path | None) -> None:
    """In the terminal and, where they are wanted, in files; raises OSError."""
    from rich.console import Console

    from service import rendering

    try:
        if html is not None:
            html.write_text(rendering.page(text, found), encoding="utf-8")
        if png is not None:
            rendering.picture(text, found, png)
    except ModuleNotFoundError as error:
        refuse(f"a picture needs {error.name}, of the extra `train`: pip install '.[train]'", 2)
    console = Console(highlight=False, soft_wrap=True)
    console.print(rendering.title(found), style="bold")
    console.print(rendering.terminal(text, found))
    lines = [rendering.heaviest(text, found), *rendering.notes(found)]
    console.print("\n".join(lines), style="dim", markup=False)


@explain.command("report")
def explain_report(
    data: Annotated[
        Path,
        typer.Option(
            help='Rows {"text"}, with "entity" and "label" where known; of intents {"text"} or {"turns"} and "label".',
            exists=True,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.html.")],
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle (the shipped one).")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Of a bundle of intents: one of its label sets, or the file of a head.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Texts to explain, drawn of all.", min=1)] = 2000,
) -> None:
    """Write one page on many texts: words that drive answers, what heads do and which can go, whence mistakes come."""
    from models.bundle import SHIPPED, SHIPPED_INTENT, BundleError, load
    from models.evaluation.attention_analysis import find
    from models.explain.explainer import explainer_of
    from service import report

    try:
        loaded = load(bundle or (SHIPPED_INTENT if labels else SHIPPED))
        explainer = explainer_of(loaded)
        if loaded.task.labels:
            title, known = loaded.name, _known_texts(explainer, loaded, data, rows)
        else:
            head = _head(loaded, labels)
            title, known = f"{loaded.name}, {head.name}", _known_dialogues(explainer, head, data, rows)
        found = find(loaded.graph, explainer, known, _say)
        out.mkdir(parents=True, exist_ok=True)
        page = report.page(f"{title} {loaded.version} on {data.name}", found)
        (out / "report.html").write_text(page, encoding="utf-8")
    except (BundleError, OSError, ValueError) as error:
        refuse(error)
    print(f"Wrote {out / 'report.html'}")


def _known_texts(explainer: Explainer, bundle: Bundle, data: Path, rows: int) -> list[Known]:
    from models.data.user_files import read_texts
    from models.evaluation.explanation_samples import shuffled
    from models.evaluation.influential_words import Known

    texts = shuffled(read_texts(data, bundle.task.labels))[:rows]
    return [Known(explainer.text(row.text, row.entity), row.label, row.entity) for row in texts]


def _known_dialogues(explainer: Explainer, head: Head, data: Path, rows: int) -> list[Known]:
    from models.data.user_files import read_dialogues
    from models.evaluation.explanation_samples import shuffled
    from models.evaluation.influential_words import Known

    dialogues = shuffled(read_dialogues(data, head.labels))[:rows]
    return [Known(explainer.intent(row.turns, head), row.label) for row in dialogues]


def _head(bundle: Bundle, labels: str | None) -> Head:
    from models.prediction.intent_head import SUFFIX, heads_of, load_head

    own = heads_of(bundle.path, bundle.encoder)
    if labels is not None and labels.endswith(SUFFIX):
        return load_head(Path(labels), bundle.encoder)
    if labels not in own:
        named = ", ".join(own) or "it has none of its own"
        refuse(f"name a label set of {bundle.name} with --labels ({named}), or the file of a head (*{SUFFIX})", 2)
    return own[labels]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
    from models.bundle import SHIPPED, SHIPPED_INTENT, SHIPPED_RECOMMEND, BundleError, load
    from models.evaluation import stability
    from models.evaluation.explanation_samples import unchanged
    from models.evaluation.faithfulness import measure
    from models.explain.explainer import explainer_of
    from models.export import card_explanations

    shipped = {"sentiment": SHIPPED, "intent": SHIPPED_INTENT, "recommend": SHIPPED_RECOMMEND}
    model = "intent" if task == "replies" else task
    try:
        loaded = load(bundle or shipped[model])
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
        _say(f"{row.dataset}, {row.method}: {row.rows} rows")
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
