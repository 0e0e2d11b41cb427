"""`heed explain intent`: which words of a text speak for an intent, without a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from models.explain.methods import IntentMethod
from service.cli_explain import refuse_unless_utf_8, show
from service.refusal import refuse


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
    from service.shelf import Shelf

    refuse_unless_utf_8(text)
    try:
        chosen = settings.load(labels=labels, intent_bundle=bundle and bundle.resolve(), shelf=shelf)
        loaded = load(chosen.intent_bundle or SHIPPED_INTENT)
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
