"""`heed explain intent`: which words of a text speak for an intent, without a service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from models.explain.methods import DEFAULT_METHOD, IntentMethod, SentimentMethod
from service.cli.exit import fail, say

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.evaluation.influential_words import LabelledInstance
    from models.explain.explainer import Explainer, Explanation
    from models.prediction.intent_head import IntentHead


def explain_intent(
    text: Annotated[str, typer.Argument(help="What a customer says.")],
    label_set: Annotated[
        str | None, typer.Option(help="Label set, of the bundle or of a team's own (HEED_LABEL_SET, banking77).")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Folder of the intent model (HEED_INTENT_BUNDLE).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with a team's own label sets (HEED_DATA_DIR).")] = None,
    method: Annotated[
        Literal["auto", IntentMethod],
        typer.Option(help="How words are weighed; auto is the one measured to be best for its time."),
    ] = "auto",
    target: Annotated[str | None, typer.Option(help="Intent to explain (the likeliest).")] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with the coloured text to this file too.")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a picture of the weights to this file too.")] = None,
) -> None:
    """Show which words speak for an intent: green speaks for it, red against it."""
    from models.bundle import SHIPPED_INTENT, BundleError, load_bundle
    from models.explain.explainer import open_explainer
    from models.prediction.tensor_file import ArtifactError
    from models.text.tokenizer import Turn
    from service import settings
    from service.registry.heads import HeadRegistry

    require_utf_8(text)
    try:
        chosen = settings.load_settings(
            label_set=label_set, intent_bundle=bundle and bundle.resolve(), data_dir=data_dir
        )
        loaded = load_bundle(chosen.bundles.get("intent", SHIPPED_INTENT))
        if loaded.task.name != "intent":
            fail(f"{loaded.name} is a model of {loaded.task.name}", 2)
        heads = HeadRegistry(loaded, chosen.data_dir).scan_heads()
        if chosen.label_set not in heads:
            fail(f"there is no label set {chosen.label_set!r}; there are {', '.join(sorted(heads))}", 2)
        head = heads[chosen.label_set]
        if target is not None and target not in head.labels:
            fail(f"the target {target!r} is none of the {len(head.labels)} intents of {head.name}", 2)
        explainer = open_explainer(loaded)
        question = explainer.intent_instance((Turn("customer", text),), head, target)
        show_explanation(text, explainer.explain(question, DEFAULT_METHOD if method == "auto" else method), html, png)
    except settings.SettingsError as error:
        fail(error, 2)
    except (BundleError, ArtifactError, OSError, ValueError) as error:
        fail(error)


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
    from models.bundle import SHIPPED, BundleError, load_bundle
    from models.explain.explainer import open_explainer

    require_utf_8(f"{text}{entity or ''}")
    try:
        loaded = load_bundle(bundle or SHIPPED)
        if not loaded.task.labels:
            fail(f"{loaded.name} answers no fixed labels; what is explained is sentiment", 2)
        if target is not None and target not in loaded.task.labels:
            fail(f"the target {target!r} is none of {', '.join(loaded.task.labels)}", 2)
        explainer = open_explainer(loaded)
        found = explainer.explain(
            explainer.text_instance(text, entity, target), DEFAULT_METHOD if method == "auto" else method
        )
        show_explanation(text, found, html, png)
    except (BundleError, OSError, ValueError) as error:
        fail(error)


def require_utf_8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        fail("the text, or the entity, is not in UTF-8", 2)


def show_explanation(text: str, found: Explanation, html: Path | None, png: Path | None) -> None:
    """In the terminal and, where they are wanted, in files; raises OSError."""
    from rich.console import Console

    from service.cli import render_explanation as rendering

    try:
        if html is not None:
            html.write_text(rendering.explanation_page(text, found), encoding="utf-8")
        if png is not None:
            rendering.save_picture(text, found, png)
    except ModuleNotFoundError as error:
        fail(f"a picture needs {error.name}, of the extra `train`: pip install '.[train]'", 2)
    console = Console(highlight=False, soft_wrap=True)
    console.print(rendering.title(found), style="bold")
    console.print(rendering.terminal_text(text, found))
    lines = [rendering.strongest_words(text, found), *rendering.notes(found)]
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
    label_set: Annotated[
        str | None, typer.Option(help="Of a bundle of intents: one of its label sets, or the file of a head.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Texts to explain, drawn of all.", min=1)] = 2000,
) -> None:
    """Write one page on many texts: words that drive answers, what heads do and which can go, whence mistakes come."""
    from models.bundle import SHIPPED, SHIPPED_INTENT, BundleError, load_bundle
    from models.evaluation.attention_analysis import analyze
    from models.explain.explainer import open_explainer
    from service.cli import render_report as report

    try:
        loaded = load_bundle(bundle or (SHIPPED_INTENT if label_set else SHIPPED))
        explainer = open_explainer(loaded)
        if loaded.task.labels:
            title, known = loaded.name, _known_texts(explainer, loaded, data, rows)
        else:
            head = _head(loaded, label_set)
            title, known = f"{loaded.name}, {head.name}", _known_dialogues(explainer, head, data, rows)
        found = analyze(loaded.graph, explainer, known, say)
        out.mkdir(parents=True, exist_ok=True)
        page = report.report_page(f"{title} {loaded.version} on {data.name}", found)
        (out / "report.html").write_text(page, encoding="utf-8")
    except (BundleError, OSError, ValueError) as error:
        fail(error)
    print(f"Wrote {out / 'report.html'}")


def _known_texts(explainer: Explainer, bundle: Bundle, data: Path, rows: int) -> list[LabelledInstance]:
    from models.data.user_files import read_texts
    from models.evaluation.explanation_samples import shuffled
    from models.evaluation.influential_words import LabelledInstance

    texts = shuffled(read_texts(data, bundle.task.labels))[:rows]
    return [LabelledInstance(explainer.text_instance(row.text, row.entity), row.label, row.entity) for row in texts]


def _known_dialogues(explainer: Explainer, head: IntentHead, data: Path, rows: int) -> list[LabelledInstance]:
    from models.data.user_files import read_dialogues
    from models.evaluation.explanation_samples import shuffled
    from models.evaluation.influential_words import LabelledInstance

    dialogues = shuffled(read_dialogues(data, head.labels))[:rows]
    return [LabelledInstance(explainer.intent_instance(row.turns, head), row.label) for row in dialogues]


def _head(bundle: Bundle, label_set: str | None) -> IntentHead:
    from models.prediction.intent_head import SUFFIX, load_bundle_heads, load_head

    own = load_bundle_heads(bundle.path, bundle.encoder_digest)
    if label_set is not None and label_set.endswith(SUFFIX):
        return load_head(Path(label_set), bundle.encoder_digest)
    if label_set not in own:
        named = ", ".join(own) or "it has none of its own"
        fail(f"name a label set of {bundle.name} with --label-set ({named}), or the file of a head (*{SUFFIX})", 2)
    return own[label_set]
