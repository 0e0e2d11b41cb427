"""Valid recommendation requests and catalogue edits. Some of their items may be invalid."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.bench.answers.phrases import Writer
from tests.bench.answers.requests import JSON_TYPE, Request, encode, generate, post, rng_of

CATALOGUE = "answers"
CATALOGUE_ITEMS = 150

# Items of the shipped catalogue: twenty popular items, then twenty rare ones.
SHOP = (
    *("22423", "85123A", "47566", "84879", "22720", "21212", "85099B", "22457", "22960", "22961"),
    *("22469", "22138", "20725", "23298", "22666", "20728", "22470", "22086", "22382", "21034"),
    *("22704", "90200B", "84963B", "84617", "79157V", "23263", "23092", "22967", "72819", "37462E"),
    *("21106", "21064", "20778", "22532", "21488", "22465", "22169", "84341B", "22749", "37491C"),
)
_EVENTS = ("view", "click", "cart", "purchase", "purchase", "purchase", "like", "dislike", "wishlist")
_COLOURS = ("red", "blue", "ivory", "红")
_SHOP_FILTERS: tuple[dict[str, Any], ...] = (
    {"price": {"lt": 5}},
    {"price": {"gte": 1, "lte": 2.5}},
    {"price": 0.85},
    {"price": {"ne": 0.85}},
    {"price": {"in": [0.85, 1.25, 2.1]}},
    {"price": {"gt": 100000}},
)
_CATALOGUE_FILTERS: tuple[dict[str, Any], ...] = (
    {"colour": "red"},
    {"colour": {"in": ["blue", "红"]}, "price": {"lt": 12}},
    {"stock": True},
    {"colour": {"ne": "ivory"}},
    {},
)


def recommend(count: int) -> list[Request]:
    return generate("recommend", count, lambda *state: post("/v1/recommend", _recommend_body(*state)))


def _recommend_body(rng: Random, writer: Writer, number: int) -> dict[str, Any]:
    if number % 8 == 0:
        return {"inputs": [user(rng, writer, rng.randint(0, 12)) for _ in range(rng.randint(1, 8))]}
    if number % 40 == 1:
        return {"inputs": user(rng, writer, 300) | {"candidates": _many_candidates(rng)}}
    if number % 20 == 2:
        return {"inputs": user(rng, writer, rng.choice((256, 257, 400)))}
    return {"inputs": user(rng, writer, rng.choice((0, 1, 2, 3, 5, 8, 13, 30)))}


def _many_candidates(rng: Random) -> list[dict[str, str]]:
    """Return more candidates than the service ranks inline."""
    return [{"item_id": rng.choice(SHOP)} for _ in range(2_500)]


def user(rng: Random, writer: Writer, events: int) -> dict[str, Any]:
    own_catalogue = rng.random() < 0.3
    body: dict[str, Any] = {"history": _history(rng, writer, events, own_catalogue)}
    if own_catalogue:
        body["catalogue"] = CATALOGUE
    if rng.random() < 0.35:
        body["candidates"] = [_candidate(rng, writer, own_catalogue) for _ in range(rng.choice((1, 3, 10, 40)))]
    options: dict[str, Any] = {
        "top_k": rng.choice((1, 3, 5, 20, 100)),
        "newcomers": rng.choice((0, 1, 2, 5)),
        "exclude_history": rng.random() < 0.7,
        "filter": rng.choice(_CATALOGUE_FILTERS if own_catalogue else _SHOP_FILTERS),
        "on_unknown": "skip",
        "id": f"u-{rng.randint(1, 99)}",
    }
    shares = {"filter": 0.25, "on_unknown": 0.85}
    return body | {name: value for name, value in options.items() if rng.random() < shares.get(name, 0.4)}


def _history(rng: Random, writer: Writer, events: int, own_catalogue: bool) -> list[dict[str, Any]]:
    """Return events with old dates, so that no answer depends on the day of the recording."""
    timed = rng.random() < 0.5
    history = []
    for _ in range(events):
        event = _item(rng, writer, own_catalogue) | {"event": rng.choice(_EVENTS)}
        if rng.random() < 0.15:
            event |= {"event": "rating", "value": rng.choice((0, 1, 2.5, 3, 4.5, 5))}
        if timed:
            event["at"] = _time(rng)
        history.append(event)
    return history


def _time(rng: Random) -> str:
    day = f"20{rng.randint(10, 11)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
    clock = f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}:{rng.randint(0, 59):02}"
    return f"{day}{rng.choice('Tt ')}{clock}{rng.choice(('Z', 'z', '+08:00', '-03:30', '.25Z'))}"


def _item(rng: Random, writer: Writer, own_catalogue: bool) -> dict[str, Any]:
    """Return an id of the catalogue, a text, both, or an unknown id."""
    kind = rng.random()
    item_id = f"b-{rng.randint(1, CATALOGUE_ITEMS)}" if own_catalogue else rng.choice(SHOP)
    if kind < 0.75:
        return {"item_id": item_id}
    if kind < 0.9:
        return {"text": writer.item()}
    if kind < 0.97:
        return {"item_id": f"mine-{rng.randint(1, 5)}", "text": writer.item()}
    return {"item_id": f"gone-{rng.randint(1, 9)}"}


def _candidate(rng: Random, writer: Writer, own_catalogue: bool) -> dict[str, Any]:
    return {"text": writer.long(8)} if rng.random() < 0.02 else _item(rng, writer, own_catalogue)


def catalogues(count: int) -> list[Request]:
    """Return edits and reads. Their order matters, because each edit changes the state for the next."""
    paths = ("/v1/catalogues", f"/v1/catalogues/{CATALOGUE}", "/v1/catalogues/online_retail")

    def make(rng: Random, writer: Writer, number: int) -> Request:
        return Request("GET", rng.choice(paths)) if number % 3 == 2 else _edit(rng, writer)

    return generate("catalogues", count, make)


def _edit(rng: Random, writer: Writer) -> Request:
    items = [_make_edited_item(rng, writer, item_id) for item_id in _ids(rng, rng.choice((0, 1, 2, 5, 12)))]
    edited_ids = {item["item_id"] for item in items}
    remove = [item_id for item_id in _ids(rng, rng.choice((0, 0, 1, 3))) if item_id not in edited_ids]
    body: dict[str, Any] = {"items": items or [_make_edited_item(rng, writer, "b-1")]}
    if remove and "b-1" not in remove:
        body["remove"] = [*remove, "never-there"]
    return Request("PUT", f"/v1/catalogues/{CATALOGUE}/items", encode(body), dict(JSON_TYPE))


def _ids(rng: Random, count: int) -> list[str]:
    return [f"b-{number}" for number in rng.sample(range(1, CATALOGUE_ITEMS + 20), count)]


def _make_edited_item(rng: Random, writer: Writer, item_id: str) -> dict[str, Any]:
    text = " " if rng.random() < 0.05 else writer.long(20) if rng.random() < 0.05 else writer.item()
    return _make_item(rng, item_id, text)


def _make_item(rng: Random, item_id: str, text: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {"price": round(rng.uniform(0.5, 20), 2), "stock": rng.random() < 0.8}
    if rng.random() < 0.8:
        attributes["colour"] = rng.choice(_COLOURS)
    return {"item_id": item_id, "text": text, "attributes": attributes, "popularity": rng.randint(0, 40)}


def catalogue_items() -> list[dict[str, Any]]:
    """Return the items of the catalogue that is added before the recording."""
    rng = rng_of("catalogue")
    writer = Writer(rng)
    return [_make_item(rng, f"b-{number}", writer.item()) for number in range(1, CATALOGUE_ITEMS + 1)]
