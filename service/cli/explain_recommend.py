"""`heed explain recommend`: which items of a history speak for a recommended item, without a service."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from models.explain.methods import HistoryMethod
from service.cli.exit import fail

if TYPE_CHECKING:
    from models.bundle import Bundle
    from service.schemas.explain_recommend import ExplainedUser
    from service.settings import Settings


_SHOWN = 20
_FAINTEST = 0.05
"""Share of the heaviest weight below which an item is not coloured."""


def explain_recommend(
    file: Annotated[
        Path,
        typer.Argument(
            help="A JSON body as for /v1/explain/recommend, or one of its inputs alone.", exists=True, dir_okay=False
        ),
    ],
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle (the shipped one).")] = None,
    target: Annotated[str | None, typer.Option(help="item_id to explain (the one ranked first).")] = None,
    method: Annotated[
        Literal["auto", HistoryMethod] | None,
        typer.Option(help="How the history is weighed; auto is the one measured to be best for its time."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with a catalogue that the file names (HEED_DATA_DIR).", file_okay=False)
    ] = None,
) -> None:
    """Show which items of a history a recommendation rests on: green speaks for it, red against it."""
    from models.bundle import SHIPPED_RECOMMEND, BundleError, load_bundle
    from models.explain.history import DEFAULT_HISTORY_METHOD
    from service import settings
    from service.errors import Problem

    try:
        user, named = _read(file.read_bytes())
        loaded = load_bundle(bundle or SHIPPED_RECOMMEND)
        if loaded.task.name != "recommend":
            fail(f"{loaded.name} is a model of {loaded.task.name}", 2)
        chosen = method or named
        # One explanation needs no GPU, whatever the service runs on.
        configured = settings.load_settings(data_dir=data_dir and data_dir.resolve(), device="cpu")
        asked = user if target is None else user.model_copy(update={"target": target})
        found = asyncio.run(
            _explained(loaded, asked, DEFAULT_HISTORY_METHOD if chosen == "auto" else chosen, configured)
        )
    except settings.SettingsError as error:
        fail(error, 2)
    except Problem as problem:
        fail(f"{file}{f' at {problem.pointer}' if problem.pointer else ''}: {problem.detail}", 2)
    except (BundleError, RuntimeError, OSError) as error:
        fail(error)
    _show(found, user)


def _read(content: bytes) -> tuple[ExplainedUser, Literal["auto"] | HistoryMethod]:
    """The one user of a body, and the method that it names; raises a Problem."""
    import orjson

    from service.errors import InvalidRequest
    from service.http.body import parse
    from service.schemas.explain_recommend import ExplainedUser, ExplainRecommendRequest

    try:
        alone = "history" in orjson.loads(content)
    except (orjson.JSONDecodeError, TypeError):
        alone = False  # what is wrong with it is said below
    if alone:
        return parse(ExplainedUser, content), "auto"
    request = parse(ExplainRecommendRequest, content)
    users = request.inputs if isinstance(request.inputs, list) else [request.inputs]
    if len(users) > 1:
        raise InvalidRequest("One user is explained at a time here.", pointer="/inputs")
    return users[0], request.method


async def _explained(
    bundle: Bundle, user: ExplainedUser, method: HistoryMethod, configured: Settings
) -> dict[str, Any]:
    """As the service answers; raises a Problem."""
    from models.ranking.bundle_files import load_recommender
    from service.api.explain_recommend import explanation_result
    from service.api.recommend import build_queries
    from service.cluster.remote_call import CountBuffer
    from service.errors import Problem
    from service.explanation.history import history_job
    from service.explanation.pacing import Pacer
    from service.inference.assembly import open_engine
    from service.registry.catalogues import CatalogueRegistry

    engine = open_engine(bundle, configured, CountBuffer())
    recommender = load_recommender(bundle)
    catalogues = CatalogueRegistry(bundle, recommender, configured.data_dir if user.catalogue else None)
    await engine.start()
    await catalogues.start()
    try:
        (question,), read, _ = await build_queries(engine, catalogues, [user], float("inf"))
        ask = history_job(recommender, question, user.target, method)
        outcome = ask if isinstance(ask, Problem) else ask(Pacer(lambda: False))
        if isinstance(outcome, Problem):
            raise outcome
        return explanation_result(user, question, outcome, read)
    finally:
        await catalogues.stop()
        await engine.stop()


def _show(found: dict[str, Any], user: ExplainedUser) -> None:
    from rich.console import Console
    from rich.text import Text

    from models.explain.history import HISTORY_METHODS
    from service.cli.render_explanation import colour, visible

    console = Console(highlight=False, soft_wrap=True)
    target, weighed = found["target"], sorted(found["history"], key=lambda one: -abs(one["weight"]))
    console.print(Text(f"{visible(_name(target))}: {target['score']:.3f}", "bold"))
    peak = max(abs(one["weight"]) for one in weighed) or 1.0
    for one in weighed[:_SHOWN]:
        share = one["weight"] / peak
        counted = Counter(user.history[index]["event"] for index in one["history_indexes"])
        events = ", ".join(f"{event} x {count}" if count > 1 else event for event, count in counted.items())
        line = Text(f"{one['weight']:+.4f}  ")
        line.append(visible(_name(one)), f"black on {colour(share, True)}" if abs(share) >= _FAINTEST else "")
        console.print(line.append(f"  {visible(events)}", "dim"))
    more = len(weighed) - _SHOWN
    notes = [
        f"{found['method']}: {HISTORY_METHODS[found['method']]}.",
        f"Green speaks for {_name(target)}, red against it.",
    ]
    if found["history_dropped"]:
        notes.append(f"The oldest {found['history_dropped']} events were not read.")
    if more > 0:
        notes.append(f"{more} items that weigh less are not shown.")
    console.print(Text(visible("\n".join(notes)), "dim"))


def _name(item: dict[str, Any]) -> str:
    return " ".join(part for part in (item["item_id"], item["text"]) if part)
