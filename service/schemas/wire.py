"""The wire: what callers send and get, and every limit of it.

Shapes are strict (no coercion, no unknown field) and bounded. This knows nothing of models or of HTTP; what a text
means, and whether one of many texts can be answered, is decided further in and comes back as that item's `error`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Tag
from pydantic_core import PydanticCustomError

from models.text.language import has_text

MAX_INPUTS = 256
MAX_TEXT_CHARS = 2_000_000  # above the body limit on purpose: over-long texts are truncated, not refused
MAX_ENTITY_CHARS = 1_000
MAX_ID_CHARS = 256
MAX_NAME_CHARS = 128
MAX_TOP_K = 100

# Branch names of unions. pydantic puts them into the location of an error; `bodies` takes them out again.
TEXT, OBJECT, LIST = "(text)", "(object)", "(list)"
UNION_TAGS = frozenset({TEXT, OBJECT, LIST})


class WireModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _readable(text: str) -> str:
    if not has_text(text):
        raise PydanticCustomError("empty_text", "Input holds nothing that can be read")
    return text


READABLE = AfterValidator(_readable)


# Chosen by a function and not tried in turn, so that a wrong input gives one error that says what is expected.
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS), Tag(TEXT)]


class ItemError(WireModel):
    status: int
    code: str
    title: str
    detail: str


class FailedItem(WireModel):
    error: ItemError
    id: str | None


class Timings(WireModel):
    """Milliseconds. Queue and infer are those of the text that was answered last, so that the three add up."""

    tokenize: float
    queue: float
    infer: float


class ProblemBody(WireModel):
    """RFC 9457. Branch on `code`; the sentences may change."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    pointer: Annotated[str | None, Field(description="JSON pointer to the offending value")] = None
