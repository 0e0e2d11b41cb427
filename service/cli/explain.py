"""`heed explain`: the words that a sentiment or an intent rests on, and a report on many texts. No service runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from models.explain.methods import DEFAULT_METHOD, IntentMethod, SentimentMethod
from models.names import list_nearest
from service.cli.command import (
    GroupWithDefault,
    describe_data_dir,
    examples,
    fail,
    log,
    read_settings,
    require_packages,
    require_runtime,
)

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.evaluation.influential_words import LabelledInstance
    from models.explain.explainer import Explainer, Explanation
    from models.prediction.intent_head import IntentHead


def explain_intent(
    text: Annotated[str, typer.Argument(help="Text of a customer.")],
    label_set: Annotated[
        str | None, typer.Option(help="Label set of the bundle or of your data folder (HEED_LABEL_SET, banking77).")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Folder of the intent model (HEED_INTENT_BUNDLE).")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of your label sets (HEED_DATA_DIR).")] = None,
    method: Annotated[
        Literal["auto", IntentMethod],
        typer.Option(help="Explanation method. auto is the most faithful one for its time."),
    ] = "auto",
    target: Annotated[str | None, typer.Option(help="Intent to explain. The default is the most likely one.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the coloured text to this HTML file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also write a picture of the weights to this PNG file.")] = None,
) -> None:
    """Show which words of a text speak for an intent. Green words speak for it, red ones against it."""
    require_drawing(png)
    from models.bundle import SHIPPED_INTENT, BundleError, load_bundle
    from models.explain.explainer import open_explainer
    from models.prediction.tensor_file import ArtifactError
    from models.text.tokenizer import Turn
    from service.registry.heads import HeadRegistry

    require_utf_8(text)
    chosen = read_settings(
        label_set=label_set, intent_bundle=bundle and bundle.resolve(), data_dir=data_dir and data_dir.resolve()
    )
    try:
        loaded = load_bundle(chosen.bundles.get("intent", SHIPPED_INTENT))
        if loaded.task.name != "intent":
            fail(f"{loaded.name} is a model of {loaded.task.name}, not of intents", 2)
        heads = HeadRegistry(loaded, chosen.data_dir).scan_heads()
        if chosen.label_set not in heads:
            listed = list_nearest(heads, chosen.label_set)
            folder = describe_data_dir(chosen.data_dir)
            fail(f"there is no label set {chosen.label_set!r}; there are {listed}. {folder}", 2)
        head = heads[chosen.label_set]
        if target is not None and target not in head.labels:
            fail(f"the target {target!r} is none of the {len(head.labels)} intents of {head.name}", 2)
        explainer = open_explainer(loaded)
        instance = explainer.intent_instance((Turn("customer", text),), head, target)
        show_explanation(text, explainer.explain(instance, DEFAULT_METHOD if method == "auto" else method), html, png)
    except (BundleError, ArtifactError, OSError, ValueError) as error:
        fail(error)


class TextOrCommand(GroupWithDefault):
    """A group that explains a text when no command is named."""

    default = "text"


explain = typer.Typer(
    cls=TextOrCommand,
    no_args_is_help=True,
    help='Show what an answer rests on. heed explain "some text" is short for heed explain text "some text".',
)


@explain.command(
    "text",
    epilog=examples(
        'heed explain "Shares of Acme plunge after profit warning"',
        'heed explain text "Acme gains, Birch falls" --entity Birch --html page.html',
    ),
)
def explain_text(
    text: Annotated[str, typer.Argument(help="Text whose sentiment is explained.")],
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle. The default is the shipped one.")] = None,
    entity: Annotated[
        str | None, typer.Option(help="Explain the sentiment towards this company or thing in the text.")
    ] = None,
    method: Annotated[
        Literal["auto", SentimentMethod],
        typer.Option(help="Explanation method. auto is the most faithful one for its time."),
    ] = "auto",
    target: Annotated[str | None, typer.Option(help="Label to explain. The default is the predicted one.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write the coloured text to this HTML file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Also write a picture of the weights to this PNG file.")] = None,
) -> None:
    """Show which words of a text its sentiment rests on. Green words speak for it, red ones against it."""
    require_drawing(png)
    from models.bundle import SHIPPED, BundleError, load_bundle
    from models.explain.explainer import UnnamedEntityError, open_explainer

    require_utf_8(f"{text}{entity or ''}")
    try:
        loaded = load_bundle(bundle or SHIPPED)
        if not loaded.task.labels:
            fail(f"{loaded.name} is a model of {loaded.task.name}, not of sentiment", 2)
        if target is not None and target not in loaded.task.labels:
            fail(f"the target {target!r} is none of {', '.join(loaded.task.labels)}", 2)
        explainer = open_explainer(loaded)
        instance = explainer.text_instance(text, entity, target, only_named=True)
        show_explanation(text, explainer.explain(instance, DEFAULT_METHOD if method == "auto" else method), html, png)
    except UnnamedEntityError as error:
        fail(error, 2)
    except (BundleError, OSError, ValueError) as error:
        fail(error)


def require_utf_8(text: str) -> None:
    """Fail if an argument of the command line was not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        fail("the text, or the entity, is not in UTF-8", 2)


def require_drawing(png: Path | None) -> None:
    """Fail if explaining, or drawing the picture that is wanted, needs a package that is missing."""
    require_runtime()
    if png is not None:
        require_packages("a picture", "matplotlib")


def show_explanation(text: str, explanation: Explanation, html: Path | None, png: Path | None) -> None:
    """Print an explanation, and write it to the files that are named. Raises OSError."""
    from rich.console import Console

    from service.cli.rendering import explanation as rendering

    if html is not None:
        html.write_text(rendering.explanation_page(text, explanation), encoding="utf-8")
    if png is not None:
        rendering.save_picture(text, explanation, png)
    console = Console(highlight=False, soft_wrap=True)
    console.print(rendering.title(explanation), style="bold")
    console.print(rendering.terminal_text(text, explanation))
    lines = [rendering.strongest_words(text, explanation), *rendering.notes(explanation)]
    console.print("\n".join(lines), style="dim", markup=False)


def explain_report(
    data: Annotated[
        Path,
        typer.Option(
            help='.jsonl or .jsonl.gz file of {"text"}, with "entity" and "label" if known. '
            'For intents, of {"text"} or {"turns"}, with "label" if known.',
            exists=True,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write report.html to.")],
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle. The default is the shipped one.")] = None,
    label_set: Annotated[
        str | None, typer.Option(help="For intents: a label set of the bundle, or the file of a head.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Number of texts to explain, drawn at random.", min=1)] = 2000,
) -> None:
    """Write a page on many texts: the most influential words, what attention heads do, and where mistakes come from."""
    require_runtime()
    from models.bundle import SHIPPED, SHIPPED_INTENT, BundleError, load_bundle
    from models.evaluation.attention_analysis import analyze
    from models.explain.explainer import open_explainer
    from service.cli.rendering import report

    try:
        loaded = load_bundle(bundle or (SHIPPED_INTENT if label_set else SHIPPED))
        explainer = open_explainer(loaded)
        if loaded.task.labels:
            title, instances = loaded.name, _labelled_texts(explainer, loaded, data, rows)
        else:
            head = _load_named_head(loaded, label_set)
            title = f"{loaded.name}, {head.name}"
            instances = _labelled_dialogues(explainer, head, data, rows)
        analysis = analyze(loaded.graph, explainer, instances, log)
        out.mkdir(parents=True, exist_ok=True)
        page = report.report_page(f"{title} {loaded.version} on {data.name}", analysis)
        (out / "report.html").write_text(page, encoding="utf-8")
    except (BundleError, OSError, ValueError) as error:
        fail(error)
    print(f"Wrote {out / 'report.html'}")


def _labelled_texts(explainer: Explainer, bundle: Bundle, data: Path, rows: int) -> list[LabelledInstance]:
    from models.data.user_files import read_texts
    from models.evaluation.explanation_samples import shuffled
    from models.evaluation.influential_words import LabelledInstance

    texts = shuffled(read_texts(data, bundle.task.labels))[:rows]
    return [LabelledInstance(explainer.text_instance(row.text, row.entity), row.label, row.entity) for row in texts]


def _labelled_dialogues(explainer: Explainer, head: IntentHead, data: Path, rows: int) -> list[LabelledInstance]:
    from models.data.user_files import read_dialogues
    from models.evaluation.explanation_samples import shuffled
    from models.evaluation.influential_words import LabelledInstance

    dialogues = shuffled(read_dialogues(data, head.labels))[:rows]
    return [LabelledInstance(explainer.intent_instance(row.turns, head), row.label) for row in dialogues]


def _load_named_head(bundle: Bundle, label_set: str | None) -> IntentHead:
    from models.prediction.intent_head import SUFFIX, load_bundle_heads, load_head

    heads = load_bundle_heads(bundle.path, bundle.encoder_digest)
    if label_set is not None and label_set.endswith(SUFFIX):
        return load_head(Path(label_set), bundle.encoder_digest)
    if label_set not in heads:
        named = list_nearest(heads, label_set or "") or "it has none"
        fail(f"name a label set of {bundle.name} with --label-set ({named}), or the file of a head (*{SUFFIX})", 2)
    return heads[label_set]
