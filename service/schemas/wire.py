"""Shared parts of the wire: limits, inputs that are an item or a list, item errors and problems.

Schemas are strict (no coercion, no unknown field) and bounded. They know neither models nor HTTP.
An item of a list that does not fit, or that no model can answer, comes back as its `error`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetPydanticSchema
from pydantic_core import CoreSchema, PydanticCustomError
from pydantic_core.core_schema import custom_error_schema, list_schema, tagged_union_schema

from models.text.language import has_text
from service.schemas import examples

MAX_INPUTS = 256
MAX_TEXT_CHARS = 2_000_000  # above the body limit, so that long texts are truncated and not refused
MAX_ENTITY_CHARS = 1_000
MAX_ID_CHARS = 256
MAX_NAME_CHARS = 128
MAX_TOP_K = 100

# Names of union branches. Pydantic puts them into the location of an error, and `service.http.body` removes them.
TEXT, OBJECT, LIST = "(text)", "(object)", "(list)"
UNION_TAGS = frozenset({TEXT, OBJECT, LIST})


Language = Literal["en", "zh", "other"]


class WireModel(BaseModel):
    """The base of all schemas: immutable, strict, without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _readable(text: str) -> str:
    if not has_text(text):
        raise PydanticCustomError("empty_text", "Input holds nothing that can be read")
    return text


READABLE = AfterValidator(_readable)
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
"""The name of a label set, a reply set, a catalogue or an intent. To ask for the default, leave it out."""


def with_message(message: str) -> GetPydanticSchema:
    """Return the annotation of a value whose faults, whatever they are, have this message and one pointer."""

    def build(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return custom_error_schema(handler(source), "wrong_value", custom_error_message=message)

    return GetPydanticSchema(build)


def number_message(low: float, high: float) -> GetPydanticSchema:
    """Return the annotation of a number whose faults name its range."""
    return with_message(f"Input should be a number from {low:g} to {high:g}")


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), number_message(0, 1)]
"""A number from 0 to 1."""


def one_or_many(item: type[WireModel], noun: str, max_items: int, *, or_text: bool = False) -> GetPydanticSchema:
    """Return the annotation of inputs that are an item or a list of items.

    With `or_text`, each item may also be a string. The type of the value chooses the branch, so that a wrong input
    gets a single error. That error calls the item by `noun`.
    """

    def item_branch(value: Any) -> str | None:
        if or_text and isinstance(value, str):
            return TEXT
        return OBJECT if isinstance(value, dict | item) else None

    def branch(value: Any) -> str | None:
        return LIST if isinstance(value, list) else item_branch(value)

    def build(_: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        choices: dict[Any, CoreSchema] = {TEXT: handler.generate_schema(Text)} if or_text else {}
        choices[OBJECT] = handler.generate_schema(item)
        items = _choose(item_branch, choices, f"a string or {noun}") if or_text else choices[OBJECT]
        many = list_schema(items, min_length=1, max_length=max_items)
        expected = f"a string, {noun}, or a list of either" if or_text else f"{noun}, or a list of them"
        return _choose(branch, choices | {LIST: many}, expected)

    return GetPydanticSchema(build)


def _choose(branch: Callable[[Any], str | None], choices: dict[Any, CoreSchema], expected: str) -> CoreSchema:
    return tagged_union_schema(
        choices, branch, custom_error_type="input_type", custom_error_message=f"Input should be {expected}"
    )


class ItemError(WireModel):
    """The problem of an input. Branch on `code`; the sentences may change."""

    status: int
    code: str
    title: str
    detail: str
    pointer: Annotated[
        str | None, Field(description="JSON pointer to the wrong value in the body; absent if no value is wrong")
    ] = None


class FailedItem(WireModel):
    """The result of an input that has no answer."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.FAILED_ITEM]})

    error: ItemError
    id: Annotated[str | None, Field(description="the id of the input; null without a valid one")]


class LanguageFields(WireModel):
    """The language of a text, or of the newest turn of a dialogue."""

    language: Annotated[Language, Field(description="en, zh, or other")]
    unsupported_language: Annotated[
        bool | None, Field(description="true if the language is other, which the models do not know; else absent")
    ] = None


class Timings(WireModel):
    """Milliseconds. `queue` and `infer` are those of the text that finished last, so the three add up."""

    tokenize: float
    queue: float
    infer: float


class ProblemBody(WireModel):
    """A problem (RFC 9457). Branch on `code`; the sentences may change."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.PROBLEM]})

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    pointer: Annotated[str | None, Field(description="JSON pointer to the wrong value in the body")] = None
