"""JSON as a validated model: what is wrong with a document, and where.

A wrong input of a list affects no other: an `InvalidItem` takes its place. Every other fault refuses the document, and
so does a list without a valid input. A valid document is read in one pass. Only a wrong one is read item by item.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, NoReturn, TypeVar

import orjson
from pydantic import BaseModel, ValidationError, create_model
from pydantic_core import ErrorDetails, from_json

from service.errors import InvalidRequest, MalformedBody, MalformedJson, Problem
from service.http.field_names import max_items, nearest_field, unknown_field
from service.schemas.wire import MAX_ID_CHARS, UNION_TAGS, WireModel

_MAX_POINTER_CHARS = 200
_MAX_FAULTS = 2_000  # that are spelled out: 180,000 of them would take over a second
_MAX_COMPARED = 20  # unknown fields, for the one that stands for a missing field
_ID_FIELDS = ("id", "item_id")
_UNREADABLE = "Input should be a valid string, unable to parse raw data as a unicode string."
_MESSAGES = {
    "dict_type": "Input should be an object.",
    "model_type": "Input should be an object.",
    "list_type": "Input should be an array.",
}
"""Messages in the terms of JSON for types that Pydantic calls by their Python names."""

Model = TypeVar("Model", bound=BaseModel)
Path = tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class InvalidItem:
    """An input that does not fit its schema, with its id if that is valid. Pointers start at the input."""

    problem: Problem
    id: str | None


def parse(model: type[Model], body: bytes, item_fields: Sequence[str] = ("inputs",)) -> Model:
    """Return the body as a model; raise MalformedJson, MalformedBody or InvalidRequest.

    `item_fields` are its lists of items, which may then have an `InvalidItem` in place of an item.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        reason = _syntax_error(error)
    if reason is None:
        _refuse_loose_numbers(body)
        return _Validation(model, from_json(body), item_fields).result()
    document = _load_with_surrogates(body, reason)
    return _Validation(model, document, item_fields, has_surrogates=True).result()


class _Validation(Generic[Model]):
    """The validation of a document that does not fit as a whole."""

    def __init__(
        self, model: type[Model], document: Any, item_fields: Sequence[str], has_surrogates: bool = False
    ) -> None:
        self._model = model
        self._document = document
        self._has_surrogates = has_surrogates
        self._lists: dict[str, list[Any]] = {}
        if isinstance(document, dict):
            lists = {field: document[field] for field in item_fields if isinstance(document.get(field), list)}
            # A list that is too long is refused as a whole.
            self._lists = {field: values for field, values in lists.items() if len(values) <= max_items(model, field)}
        self._remaining_faults = _MAX_FAULTS

    def result(self) -> Model:
        """Return the model with an `InvalidItem` for each wrong item; raise the first problem of all else."""
        items = {field: self._check_items(field, values) for field, values in self._lists.items()}
        valid = {
            field: [item for item in values if not isinstance(item, InvalidItem)] for field, values in items.items()
        }
        if not any(valid.values()):
            self._validated(self._document)  # the first problem of the schema comes first
            _raise_first(items)
        result = self._validated(self._document | valid if valid else self._document)
        if self._has_surrogates and not _is_unicode({**self._document, **dict.fromkeys(items)}):
            raise InvalidRequest(_UNREADABLE, pointer="")
        return result.model_copy(update=items)

    def _validated(self, document: Any) -> Model:
        try:
            return self._model.model_validate(document)
        except ValidationError as error:
            raise self._problem(error, document, _MAX_FAULTS) from None

    def _check_items(self, field: str, values: list[Any]) -> list[Any]:
        checker = _item_checker(self._model, field)
        return [self._check_item(checker, field, value) for value in values]

    def _check_item(self, checker: type[BaseModel], field: str, value: Any) -> Any:
        """Return the item as the model has it, or an `InvalidItem`."""
        try:
            (item,) = getattr(checker.model_validate({field: [value]}), field)
        except ValidationError as error:
            problem = self._problem(error, {field: [value]}, self._remaining_faults)
            self._remaining_faults -= error.error_count()
            prefix = f"/{field}/0"
            return InvalidItem(problem.with_pointer((problem.pointer or prefix).removeprefix(prefix)), _id_of(value))
        if self._has_surrogates and not _is_unicode(value):
            return InvalidItem(InvalidRequest(_UNREADABLE, pointer=""), _id_of(value))
        return item

    def _problem(self, error: ValidationError, document: Any, max_faults: int) -> InvalidRequest:
        """Return the first fault in the order of the schema, or the count of too many."""
        if error.error_count() > max_faults:
            return InvalidRequest(f"{error.error_count()} values are wrong or unknown.", pointer="")
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        fault = self._first_fault(faults, document)
        path = locate(fault, document)
        if fault["type"] == "extra_forbidden":
            detail = unknown_field(self._model, path)
        else:
            detail = _MESSAGES.get(fault["type"], fault["msg"] + ".")
        return InvalidRequest(detail, pointer=json_pointer(path))

    def _first_fault(self, faults: Sequence[ErrorDetails], document: Any) -> ErrorDetails:
        """Return the fault to tell: of a missing field, the unknown field in its place, if there is one."""
        first = next((fault for fault in faults if fault["type"] == "string_unicode"), faults[0])
        if first["type"] != "missing":
            return first
        *place, missing = locate(first, document)
        unknown = [fault for fault in faults if fault["type"] == "extra_forbidden"][:_MAX_COMPARED]
        paths = [(fault, path) for fault in unknown if [*(path := locate(fault, document))[:-1]] == place]
        meant = (fault for fault, path in paths if nearest_field(self._model, path) == missing)
        return next(meant, paths[0][0] if paths else first)


def _raise_first(items: dict[str, list[Any]]) -> None:
    """Raise the problem of the first invalid item, if there is one."""
    for field, values in items.items():
        for item in values:
            raise item.problem.with_pointer(f"/{field}/0{item.problem.pointer}")


def locate(fault: ErrorDetails, document: Any) -> Path:
    """Return the path of a fault in the document, without the names that Pydantic gives to branches and checks.

    Such a name follows a key of the caller and is no key itself. Only a missing field is not in the document.
    """
    path: list[int | str] = []
    is_branch, value, location = True, document, fault["loc"]
    for index, part in enumerate(location):
        is_branch = part in UNION_TAGS and not is_branch
        if is_branch:
            continue
        is_element = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_element or (isinstance(value, dict) and part in value):
            value = value[part]
        elif fault["type"] != "missing" or index < len(location) - 1:
            continue
        path.append(part)
    return tuple(path)


def json_pointer(path: Path) -> str:
    """Return the JSON pointer of a path."""
    tokens = ["/" + str(part).replace("~", "~0").replace("/", "~1") for part in path]
    # A key may hold lone surrogates, which no UTF-8 answer can.
    return "".join(tokens)[:_MAX_POINTER_CHARS].encode("utf-8", "replace").decode("utf-8")


@cache
def _item_checker(model: type[BaseModel], field: str) -> type[BaseModel]:
    """Return a model that has only this list, so that faults of an item are located as in the whole document."""
    info = model.model_fields[field]
    fields: Any = {field: (info.annotation, info)}
    return create_model(f"{model.__name__}Items", __base__=WireModel, **fields)


def _id_of(value: Any) -> str | None:
    """Return the id of an item of JSON, if it is a valid one."""
    ids = (value.get(field) for field in _ID_FIELDS) if isinstance(value, dict) else ()
    return next((key for key in ids if isinstance(key, str) and len(key) <= MAX_ID_CHARS and _is_unicode(key)), None)


def _is_unicode(value: Any) -> bool:
    """Return whether no string of a document has a lone surrogate."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _syntax_error(error: ValidationError) -> str | None:
    """Return what Pydantic's parser says of a body that it cannot read, or None if it can."""
    if error.error_count() > 1:
        return None
    (fault,) = error.errors(include_url=False, include_context=False, include_input=False)
    return fault["msg"] + "." if fault["type"] == "json_invalid" else None


def _load_with_surrogates(body: bytes, reason: str) -> Any:
    """Return the document of a body that Pydantic's parser cannot read; raise MalformedBody or MalformedJson.

    Pydantic's parser calls lone surrogates malformed, but the grammar of JSON allows them. They are wrong values here.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"The body is not UTF-8 at byte {error.start}.") from None
    if "\\ud" in text or "\\uD" in text:
        try:
            return json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            pass
    raise MalformedJson(reason)


def _refuse_loose_numbers(body: bytes) -> None:
    """Raise MalformedJson for NaN and Infinity. They are no JSON, but pydantic's parser reads them as numbers."""
    if b"NaN" not in body and b"Infinity" not in body:
        return
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedJson(f"Invalid JSON: {error.msg}.") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
