"""`/v1/catalogues`: edits of items, and the catalogues that there are.

New texts go through the predictor, and share batches with the texts of all requests. Then the whole edit becomes
durable in a single step, and only then does the service answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response

from models.catalogue.errors import VectorsMissingError
from models.catalogue.items import EditResult
from models.catalogue.snapshot import Snapshot
from service.errors import CatalogueBusy, InvalidRequest, Problem
from service.http.body import JsonBody
from service.http.hot_route import add_hot_route, request_deadline_s
from service.http.openapi import Operation, path_parameter
from service.http.responses import error_of, json_response, language_mark, results_response, valid_items
from service.http.validation import InvalidItem
from service.inference.predictor import Embedding, Item, Predictor, Timings
from service.registry.catalogues import CatalogueRegistry
from service.schemas.catalogue import CatalogueEdit, CatalogueEdited, CatalogueInfo, CatalogueItem, CatalogueList
from service.settings import Settings

_ATTEMPTS = 3
_RETRY_S = 1.0
_TAG = "Catalogues"
_REPEATED = "This edit names the item before; only the first mention counts."
_NAME = path_parameter("name", "name of a catalogue")


def add_catalogues(app: FastAPI, predictor: Predictor, catalogues: CatalogueRegistry, settings: Settings) -> None:
    """Add the routes."""
    reader = JsonBody(
        CatalogueEdit, settings.max_body_bytes, settings.request_timeout_s, item_fields=("items", "remove")
    )

    async def edit(request: Request) -> Response:
        """Add, replace and remove items of a catalogue.

        An item replaces the whole item with the same id. The edit is durable before the answer, and all later requests
        see it.
        """
        deadline_s = request_deadline_s(request, settings)
        body = _refuse_repeated(await reader.read(request))
        name = request.path_params["name"]
        snapshot = await catalogues.snapshot(name)
        items, removed = valid_items(body.items), valid_items(body.remove)
        new_items = [item for item in items if not snapshot.has(item.item_id, item.text)]
        catalogues.check_room(snapshot, [item.item_id for item in new_items], removed)
        for _ in range(_ATTEMPTS):
            embedded = await _embed(new_items, predictor, deadline_s)
            usable = [item for item in items if item.item_id not in embedded.problems]
            if not usable and not removed:
                raise _request_problem(embedded.problems, body)
            vectors = [embedding.vector for embedding in embedded.embeddings.values()]
            vector_by_id = catalogues.item_vectors(name, list(embedded.embeddings), vectors)
            stored = [item.to_item() for item in usable]
            try:
                edited = await catalogues.edit(name, stored, vector_by_id, removed, deadline_s)
            except VectorsMissingError:  # another request has changed a text since the snapshot
                new_items = items
                continue
            info = CatalogueInfo(name=name, count=edited.count, version=edited.version, digest=snapshot.digest)
            results = _results(body, edited, usable, embedded)
            return results_response(predictor, results, embedded.timings, catalogue=info.model_dump())
        raise CatalogueBusy("Other requests are changing the same items.", retry_after_s=_RETRY_S)

    operation = Operation(
        "edit_catalogue", _TAG, "Add, replace and remove items", problems=(404, 409, 507), parameters=(_NAME,)
    )
    add_hot_route(app, "/v1/catalogues/{name}/items", edit, CatalogueEdit, CatalogueEdited, operation, method="PUT")
    _add_reading(app, catalogues)


def _refuse_repeated(body: CatalogueEdit) -> CatalogueEdit:
    """Return the edit with an `InvalidItem` for each mention of an id but the first; items come before removals."""
    seen: set[str] = set()

    def first_or_invalid(mention: CatalogueItem | str | InvalidItem) -> CatalogueItem | str | InvalidItem:
        if isinstance(mention, InvalidItem):
            return mention
        item_id, pointer = (mention, "") if isinstance(mention, str) else (mention.item_id, "/item_id")
        if item_id in seen:
            return InvalidItem(InvalidRequest(_REPEATED, pointer=pointer), item_id)
        seen.add(item_id)
        return mention

    checked = {field: [first_or_invalid(mention) for mention in getattr(body, field)] for field in ("items", "remove")}
    return body.model_copy(update=checked)


def _add_reading(app: FastAPI, catalogues: CatalogueRegistry) -> None:
    operation = Operation("list_catalogues", _TAG, "List the catalogues")

    @app.get("/v1/catalogues", response_model=CatalogueList, **operation.options())
    async def list_catalogues() -> Response:
        """List the catalogues that a request can name, and those that cannot be used, with the reason."""
        entries = []
        for name in await catalogues.names():
            try:
                entries.append(_info(await catalogues.snapshot(name)))
            except Problem as problem:
                entries.append({"name": name, "error": error_of(problem)})
        return json_response({"catalogues": entries})

    operation = Operation("get_catalogue", _TAG, "Describe a catalogue", problems=(404, 409, 503), parameters=(_NAME,))

    @app.get("/v1/catalogues/{name}", response_model=CatalogueInfo, **operation.options())
    async def get_catalogue(request: Request) -> Response:
        """Return the number of items and edits of a catalogue, and the digest of its model."""
        return json_response(_info(await catalogues.snapshot(request.path_params["name"])))


@dataclass(frozen=True, slots=True)
class _EmbeddedTexts:
    """Embeddings and problems of new texts, by item id."""

    embeddings: Mapping[str, Embedding]
    problems: Mapping[str, Problem]
    timings: Timings


async def _embed(items: Sequence[CatalogueItem], predictor: Predictor, deadline_s: float) -> _EmbeddedTexts:
    if not items:
        return _EmbeddedTexts({}, {}, Timings(0.0, 0.0, 0.0))
    answer = await predictor.predict([Item(item.text) for item in items], True, deadline_s)
    embeddings, problems = {}, {}
    for item, outcome in zip(items, answer.outcomes, strict=True):
        if isinstance(outcome, Problem):
            problems[item.item_id] = outcome
        else:
            assert isinstance(outcome, Embedding)
            embeddings[item.item_id] = outcome
    return _EmbeddedTexts(embeddings, problems, answer.timings)


def _request_problem(problems: Mapping[str, Problem], body: CatalogueEdit) -> Problem:
    """Return the problem of the first item, with a pointer into the request, for a request without a usable item."""
    return _problem_of(body.items[0], "/items/0", problems)


def _results(
    body: CatalogueEdit, edited: EditResult, usable: Sequence[CatalogueItem], embedded: _EmbeddedTexts
) -> list[dict[str, Any]]:
    ids = [*(item.item_id for item in usable), *valid_items(body.remove)]
    outcomes = dict(zip(ids, edited.outcomes, strict=True))

    def result(item: CatalogueItem | str | InvalidItem, pointer: str) -> dict[str, Any]:
        if isinstance(item, InvalidItem):
            return {"item_id": item.id, "error": error_of(_problem_of(item, pointer, embedded.problems))}
        item_id = item if isinstance(item, str) else item.item_id
        if item_id in embedded.problems:
            return {"item_id": item_id, "error": error_of(_problem_of(item, pointer, embedded.problems))}
        embedding = embedded.embeddings.get(item_id)
        truncated = None if embedding is None else embedding.truncated
        mark = {} if embedding is None else language_mark([embedding.language])
        return {"item_id": item_id, "outcome": outcomes[item_id], "truncated": truncated, **mark}

    edits = [result(item, f"/items/{index}") for index, item in enumerate(body.items)]
    return edits + [result(item_id, f"/remove/{index}") for index, item_id in enumerate(body.remove)]


def _problem_of(item: Any, pointer: str, problems: Mapping[str, Problem]) -> Problem:
    """Return the problem of an item at a pointer into the request."""
    problem = item.problem if isinstance(item, InvalidItem) else problems[item.item_id]
    return problem if problem.pointer is None else problem.with_pointer(pointer + problem.pointer)


def _info(snapshot: Snapshot) -> dict[str, Any]:
    info = CatalogueInfo(name=snapshot.name, count=snapshot.count, version=snapshot.version, digest=snapshot.digest)
    return info.model_dump()
