"""The wire: what callers send and get, and every limit of it.

Shapes are strict (no coercion, no unknown field) and bounded. This knows nothing of models or of HTTP; what a text
means, and whether one of many texts can be answered, is decided further in and comes back as that item's `error`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from models.text.language import is_readable

MAX_INPUTS = 256
MAX_TEXT_CHARS = 2_000_000  # above the body limit on purpose: over-long texts are truncated, not refused
MAX_ENTITY_CHARS = 1_000
MAX_ID_CHARS = 256
MAX_NAME_CHARS = 128
MAX_TOP_K = 100

# Branch names of unions. pydantic puts them into the location of an error; `bodies` takes them out again.
TEXT, OBJECT, LIST = "(text)", "(object)", "(list)"
BRANCHES = frozenset({TEXT, OBJECT, LIST})

Label = Literal["negative", "neutral", "positive"]


class Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _readable(text: str) -> str:
    if not is_readable(text):
        raise PydanticCustomError("empty_text", "Input holds nothing that can be read")
    return text


READABLE = AfterValidator(_readable)


class SentimentItem(Wire):
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARS, description="the text, English or Chinese")]
    entity: Annotated[
        str | None,
        Field(max_length=MAX_ENTITY_CHARS, description="ask for the sentiment towards this company or thing"),
    ] = None
    id: Annotated[str | None, Field(max_length=MAX_ID_CHARS, description="comes back with the result")] = None


def _item_branch(value: Any) -> str | None:
    return TEXT if isinstance(value, str) else OBJECT if isinstance(value, dict | SentimentItem) else None


def _branch(value: Any) -> str | None:
    return LIST if isinstance(value, list) else _item_branch(value)


# Chosen by a function and not tried in turn, so that a wrong input gives one error that says what is expected.
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS), Tag(TEXT)]
_Object = Annotated[SentimentItem, Tag(OBJECT)]
_Item = Annotated[
    Text | _Object,
    Discriminator(
        _item_branch,
        custom_error_type="input_type",
        custom_error_message="Input should be a string or an object with a text",
    ),
]
_List = Annotated[list[_Item], Field(min_length=1, max_length=MAX_INPUTS), Tag(LIST)]

SentimentInputs = Annotated[
    Text | _Object | _List,
    Discriminator(
        _branch,
        custom_error_type="input_type",
        custom_error_message="Input should be a string, an object with a text, or a list of either",
    ),
]


class SentimentRequest(Wire):
    """One text, or a list of them. Of a key that is given twice the last value counts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        "Shares of Acme plunge after profit warning",
                        {"text": "A beats B", "entity": "A", "id": "n-17"},
                    ],
                    "truncate": True,
                }
            ]
        }
    )

    inputs: SentimentInputs
    truncate: Annotated[bool, Field(description="shorten over-long texts and say so; false refuses them")] = True


class SentimentResult(Wire):
    label: Label
    scores: Annotated[dict[Label, float], Field(description="calibrated probabilities; they sum to 1")]
    polarity: Annotated[float, Field(ge=-1, le=1, description="P(positive) - P(negative)")]
    tokens: Annotated[int, Field(ge=0, description="tokens that the model read")]
    truncated: Annotated[bool, Field(description="whether the text was longer than the model reads")]
    id: str | None


class ItemError(Wire):
    status: int
    code: str
    title: str
    detail: str


class FailedItem(Wire):
    error: ItemError
    id: str | None


class Timings(Wire):
    """Milliseconds. Queue and infer are those of the text that was answered last, so that the three add up."""

    tokenize: float
    queue: float
    infer: float


class SentimentResponse(Wire):
    """Results are in the order of the inputs; one that failed carries an error, its neighbours are unharmed."""

    model: str
    version: str
    results: list[SentimentResult | FailedItem]
    timings_ms: Timings


class Limits(Wire):
    max_tokens: int
    max_inputs: int
    max_body_bytes: int


class MetricInfo(Wire):
    dataset: str
    language: str
    name: str
    value: float
    command: str


class ModelInfo(Wire):
    name: str
    version: str
    task: str
    labels: list[str]
    label_sets: Annotated[dict[str, list[str]], Field(description="intents by label set, of a model of intents")]
    reply_sets: list[str]
    languages: list[str]
    digest: Annotated[str, Field(description="sha256 of the bundle's manifest")]
    base: str
    limits: Limits
    metrics: list[MetricInfo]


class ModelList(Wire):
    models: list[ModelInfo]


class Health(Wire):
    status: Literal["ok"]


class ProblemBody(Wire):
    """RFC 9457. Branch on `code`; the sentences may change."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    pointer: Annotated[str | None, Field(description="JSON pointer to the offending value")] = None
