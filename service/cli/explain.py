"""`heed explain intent`: which words of a text speak for an intent, without a service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from models.explain.methods import IntentMethod, SentimentMethod
from service.cli.exit import refuse, say

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.evaluation.influential_words import Known
    from models.explain.explainer import Explainer, Explanation
    from models.prediction.intent_head import Head


def explain_intent(
    text: Annotated[str, typer.Argument(help="What a customer says.")],
    labels: Annotated[
        str | None, typer.Option(help="Label set, of the bundle or of a team's own (HEED_LABELS, banking77).")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Folder of the intent model (HEED_INTENT_BUNDLE).")] = None,
    shelf: Annotated[Path | None, typer.Option(help="Folder with a team's own label sets (HEED_SHELF).")] = None,
    method: Annotated[
        Literal["auto", IntentMethod],
        typer.Option(help="How words are weighed; auto is the one measured to be best for its time."),
    ] = "auto",
    target: Annotated[str | None, typer.Option(help="Intent to explain (the likeliest).")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with the coloured text to this file too.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture of the weights to this file too.")] = None,
) -> None:
    """Show which words speak for an intent: green speaks for it, red against it."""
    from models.bundle import SHIPPED_INTENT, BundleError, load
    from models.explain.explainer import AUTO, explainer_of
    from models.prediction.tensor_file import HeadError
    from models.text.tokenizer import Turn
    from service import settings
    from service.registry.heads import Shelf

    refuse_unless_utf_8(text)
    try:
        chosen = settings.load(labels=labels, intent_bundle=bundle and bundle.resolve(), shelf=shelf)
        loaded = load(chosen.bundles.get("intent", SHIPPED_INTENT))
        if loaded.task.name != "intent":
            refuse(f"{loaded.name} is a model of {loaded.task.name}", 2)
        heads = Shelf(loaded, chosen.shelf).all_heads()
        if chosen.labels not in heads:
            refuse(f"there is no label set {chosen.labels!r}; there are {', '.join(sorted(heads))}", 2)
        head = heads[chosen.labels]
        if target is not None and target not in head.labels:
            refuse(f"the target {target!r} is none of the {len(head.labels)} intents of {head.name}", 2)
        explainer = explainer_of(loaded)
        question = explainer.intent((Turn("customer", text),), head, target)
        show(text, explainer.explain(question, AUTO if method == "auto" else method), html, png)
    except settings.SettingsError as error:
        refuse(error, 2)
    except (BundleError, HeadError, OSError, ValueError) as error:
        refuse(error)


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

    from service.cli import render_explanation as rendering

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
    from service.cli import render_report as report

    try:
        loaded = load(bundle or (SHIPPED_INTENT if labels else SHIPPED))
        explainer = explainer_of(loaded)
        if loaded.task.labels:
            title, known = loaded.name, _known_texts(explainer, loaded, data, rows)
        else:
            head = _head(loaded, labels)
            title, known = f"{loaded.name}, {head.name}", _known_dialogues(explainer, head, data, rows)
        found = find(loaded.graph, explainer, known, say)
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
