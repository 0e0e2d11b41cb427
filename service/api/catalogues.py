"""`/v1/catalogues`: single items put into a catalogue or taken out, and what catalogues there are.

Texts that are new go through the predictor, as those of any request, and share its batches; then the whole edit is made
durable at once, and only then answered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response

from models.catalogue.errors import VectorsMissingError
from models.catalogue.items import EditResult
from models.catalogue.snapshot import Snapshot
from service.errors import CatalogueBusy, Problem
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, deadline_s, path_parameter
from service.http.responses import error_of, json_response, problem_responses, results_response
from service.inference.predictor import Embedding, Item, Predictor, Timings
from service.registry.catalogues import CatalogueRegistry
from service.schemas.catalogue import CatalogueEdit, CatalogueEdited, CatalogueInfo, CatalogueItem, CatalogueList
from service.settings import Settings

_TRIES = 3
_RETRY_S = 1.0


def add_catalogues(app: FastAPI, predictor: Predictor, catalogues: CatalogueRegistry, settings: Settings) -> None:
    body = JsonBody(CatalogueEdit, settings.max_body_bytes, settings.request_timeout_s)

    async def edit(given: Request) -> Response:
        """Add, change and remove items; what is answered is durable, and every request after it sees it."""
        due_s = deadline_s(given, settings)
        request = await body.read(given)
        name = given.path_params["name"]
        snapshot = await catalogues.snapshot(name)
        wanted = [item for item in request.items if not snapshot.has(item.item_id, item.text)]
        for _ in range(_TRIES):
            read = await _read(wanted, predictor, due_s)
            kept = [item for item in request.items if item.item_id not in read.problems]
            if not kept and not request.remove:
                raise _of_request(read.problems, request)
            vectors = catalogues.item_vectors(name, list(read.found), [one.vector for one in read.found.values()])
            try:
                edited = await catalogues.edit(name, [item.to_item() for item in kept], vectors, request.remove, due_s)
            except VectorsMissingError:  # someone else changed a text since
                wanted = list(request.items)
                continue
            info = CatalogueInfo(name=name, count=edited.count, version=edited.version, digest=snapshot.digest)
            results = _results(request, edited, kept, read)
            return results_response(predictor, results, read.timings, catalogue=info.model_dump())
        raise CatalogueBusy("Others are changing the same items.", retry_after_s=_RETRY_S)

    add_hot_route(app, "/v1/catalogues/{name}/items", edit, CatalogueEdit, CatalogueEdited, 404, 409, 507, method="PUT")

    @app.get("/v1/catalogues", response_model=CatalogueList)
    async def listed() -> Response:
        """Every catalogue that a request can name, and those that are refused, with the reason."""
        found = []
        for name in await catalogues.names():
            try:
                found.append(_info(await catalogues.snapshot(name)))
            except Problem as problem:
                found.append({"name": name, "error": error_of(problem)})
        return json_response({"catalogues": found})

    named = {"parameters": [path_parameter("name")]}

    @app.get(
        "/v1/catalogues/{name}",
        response_model=CatalogueInfo,
        responses=problem_responses(404, 409, 503),
        openapi_extra=named,
    )
    async def one(given: Request) -> Response:
        """How many items a catalogue has, how often it was edited, and the model that it belongs to."""
        return json_response(_info(await catalogues.snapshot(given.path_params["name"])))


@dataclass(frozen=True, slots=True)
class _Read:
    """What the model made of new texts, by item id."""

    found: Mapping[str, Embedding]
    problems: Mapping[str, Problem]
    timings: Timings


async def _read(items: Sequence[CatalogueItem], predictor: Predictor, due_s: float) -> _Read:
    if not items:
        return _Read({}, {}, Timings(0.0, 0.0, 0.0))
    answer = await predictor.predict([Item(item.text) for item in items], True, due_s)
    found, failures = {}, {}
    for item, outcome in zip(items, answer.outcomes, strict=True):
        if isinstance(outcome, Problem):
            failures[item.item_id] = outcome
        else:
            assert isinstance(outcome, Embedding)
            found[item.item_id] = outcome
    return _Read(found, failures, answer.timings)


def _of_request(found: Mapping[str, Problem], request: CatalogueEdit) -> Problem:
    """The problem of the first item as that of the request, when no item can be used."""
    problem = found[request.items[0].item_id]
    if problem.pointer is not None:
        problem.pointer = "/items/0" + problem.pointer
    return problem


def _results(
    request: CatalogueEdit, edited: EditResult, kept: Sequence[CatalogueItem], read: _Read
) -> list[dict[str, Any]]:
    ids = [*(item.item_id for item in kept), *request.remove]
    outcomes = dict(zip(ids, edited.outcomes, strict=True))
    results: list[dict[str, Any]] = []
    for item_id in [*(item.item_id for item in request.items), *request.remove]:
        if item_id in read.problems:
            results.append({"item_id": item_id, "error": error_of(read.problems[item_id])})
        else:
            embedded = read.found.get(item_id)
            truncated = None if embedded is None else embedded.truncated
            results.append({"item_id": item_id, "outcome": outcomes[item_id], "truncated": truncated})
    return results


def _info(snapshot: Snapshot) -> dict[str, Any]:
    found = CatalogueInfo(name=snapshot.name, count=snapshot.count, version=snapshot.version, digest=snapshot.digest)
    return found.model_dump()
