"""The schema of a request: the fields at a place, the field that was meant, and the lengths of lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import BaseModel

_MIN_SIMILARITY = 0.6


def unknown_field(model: type[BaseModel], path: Sequence[int | str]) -> str:
    """Return what to say of the unknown field at the end of a path: the known field next to it, or all of them."""
    if nearest := nearest_field(model, path):
        return f"There is no such field; the nearest is {nearest}."
    return f"There is no such field; there are: {', '.join(known_fields(model, path[:-1]))}."


def nearest_field(model: type[BaseModel], path: Sequence[int | str]) -> str | None:
    """Return the known field whose name is nearest to that at the end of a path, or None if it is like no other."""
    name = str(path[-1])[:100] if path else ""
    return next(iter(get_close_matches(name.lower(), known_fields(model, path[:-1]), 1, _MIN_SIMILARITY)), None)


def known_fields(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    """Return the fields of the objects that a model allows at a path, in the order of the schema."""
    schema = _json_schema(model)
    places = list(_choices(schema, schema))
    for part in path:
        places = [choice for place in places for child in _children(place, part) for choice in _choices(child, schema)]
    return list(dict.fromkeys(name for place in places for name in place.get("properties", ())))


def max_items(model: type[BaseModel], field: str) -> int:
    """Return how many items a list of a model may have, 0 without such a list."""
    schema = _json_schema(model)
    places = [choice for child in _children(schema, field) for choice in _choices(child, schema)]
    return max((place.get("maxItems", 0) for place in places), default=0)


@cache
def _json_schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _choices(place: dict[str, Any], schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the schemas that a value may have, without references and unions."""
    if reference := place.get("$ref"):
        place = schema["$defs"][reference.rpartition("/")[2]]
    yield place
    for branch in (*place.get("anyOf", ()), *place.get("oneOf", ())):
        yield from _choices(branch, schema)


def _children(place: dict[str, Any], part: int | str) -> Iterator[dict[str, Any]]:
    """Yield the schema of an element or of a field."""
    child = place.get("items") if isinstance(part, int) else place.get("properties", {}).get(part)
    if child:
        yield child
