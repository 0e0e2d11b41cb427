"""`heed explain recommend`: the items of a history that a recommendation rests on. No service runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from models.explain.methods import HistoryMethod
from service.cli.command import describe_data_dir, fail, read_settings, require_runtime

if TYPE_CHECKING:
    from models.bundle import Bundle
    from service.schemas.explain_recommend import ExplainedUser
    from service.settings import Settings


_MAX_SHOWN_ITEMS = 20
_MIN_COLOURED_SHARE = 0.05
"""An item whose weight is a smaller share of the largest weight is not coloured."""


def explain_recommend(
    file: Annotated[
        Path,
        typer.Argument(
            help="JSON file: a request body of /v1/explain/recommend, or one of its inputs.",
            exists=True,
            dir_okay=False,
        ),
    ],
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle. The default is the shipped one.")] = None,
    target: Annotated[
        str | None, typer.Option(help="item_id to explain. The default is the item ranked first.")
    ] = None,
    method: Annotated[
        Literal["auto", HistoryMethod] | None,
        typer.Option(help="Explanation method. auto is the most faithful one for its time."),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the catalogue that the file names (HEED_DATA_DIR).", file_okay=False)
    ] = None,
) -> None:
    """Show which items of a history a recommendation rests on. Green items speak for it, red ones against it."""
    from models.bundle import SHIPPED_RECOMMEND, BundleError, load_bundle
    from models.explain.history import DEFAULT_HISTORY_METHOD
    from service.errors import NotFound, Problem

    require_runtime()
    # One explanation needs no GPU, whatever the service runs on.
    configured = read_settings(data_dir=data_dir and data_dir.resolve(), device="cpu")
    try:
        user, named_method = _read_user(file.read_bytes())
        loaded = load_bundle(bundle or SHIPPED_RECOMMEND)
        if loaded.task.name != "recommend":
            fail(f"{loaded.name} is a model of {loaded.task.name}, not of recommendations", 2)
        chosen = method or named_method
        targeted = user if target is None else user.model_copy(update={"target": target})
        explanation = asyncio.run(
            _explain(loaded, targeted, DEFAULT_HISTORY_METHOD if chosen == "auto" else chosen, configured)
        )
    except Problem as problem:
        looked_at = f" {describe_data_dir(configured.data_dir)}" if isinstance(problem, NotFound) else ""
        fail(f"{file}{f' at {problem.pointer}' if problem.pointer else ''}: {problem.detail}{looked_at}", 2)
    except (BundleError, RuntimeError, OSError) as error:
        fail(error)
    _show(explanation, user)


def _read_user(content: bytes) -> tuple[ExplainedUser, Literal["auto"] | HistoryMethod]:
    """Return the only user of a request body, and the method that it names. Raises Problem."""
    import orjson

    from service.errors import InvalidRequest
    from service.http.validation import parse
    from service.schemas.explain_recommend import ExplainedUser, ExplainRecommendRequest

    try:
        is_user = "history" in orjson.loads(content)
    except (orjson.JSONDecodeError, TypeError):
        is_user = False  # parsing the body below says what is wrong
    if is_user:
        return parse(ExplainedUser, content), "auto"
    request = parse(ExplainRecommendRequest, content)
    users = request.inputs if isinstance(request.inputs, list) else [request.inputs]
    if len(users) > 1:
        raise InvalidRequest("One user is explained at a time here.", pointer="/inputs")
    return users[0], request.method


async def _explain(bundle: Bundle, user: ExplainedUser, method: HistoryMethod, configured: Settings) -> dict[str, Any]:
    """Return the result as the service answers it. Raises Problem."""
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
        (query,), encoded, _ = await build_queries(engine, catalogues, [user], float("inf"))
        job = history_job(recommender, query, user.target, method)
        outcome = job if isinstance(job, Problem) else job(Pacer(lambda: False))
        if isinstance(outcome, Problem):
            raise outcome
        return explanation_result(user, query, outcome, encoded)
    finally:
        await catalogues.stop()
        await engine.stop()


def _show(explanation: dict[str, Any], user: ExplainedUser) -> None:
    """Print the target and the items of the history, those with the largest weights first."""
    from rich.console import Console
    from rich.text import Text

    from models.explain.history import HISTORY_METHODS
    from service.cli.rendering.explanation import colour, visible

    console = Console(highlight=False, soft_wrap=True)
    target = explanation["target"]
    items = sorted(explanation["history"], key=lambda item: -abs(item["weight"]))
    console.print(Text(f"{visible(_name(target))}: {target['score']:.3f}", "bold"))
    peak = max(abs(item["weight"]) for item in items) or 1.0
    for item in items[:_MAX_SHOWN_ITEMS]:
        share = item["weight"] / peak
        counts = Counter(user.history[index]["event"] for index in item["history_indexes"])
        events = ", ".join(f"{event} x {count}" if count > 1 else event for event, count in counts.items())
        line = Text(f"{item['weight']:+.4f}  ")
        is_coloured = abs(share) >= _MIN_COLOURED_SHARE
        line.append(visible(_name(item)), f"black on {colour(share, True)}" if is_coloured else "")
        console.print(line.append(f"  {visible(events)}", "dim"))
    more = len(items) - _MAX_SHOWN_ITEMS
    notes = [
        f"{explanation['method']}: {HISTORY_METHODS[explanation['method']]}.",
        f"Green speaks for {_name(target)}, red against it.",
    ]
    if explanation["history_dropped"]:
        notes.append(f"The oldest {explanation['history_dropped']} events were not read.")
    if more > 0:
        notes.append(f"{more} items with smaller weights are not shown.")
    console.print(Text(visible("\n".join(notes)), "dim"))


def _name(item: dict[str, Any]) -> str:
    return " ".join(part for part in (item["item_id"], item["text"]) if part)
