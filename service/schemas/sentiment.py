"""The wire of /v1/sentiment."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from service.schemas.wire import (
    LIST,
    MAX_ENTITY_CHARS,
    MAX_ID_CHARS,
    MAX_INPUTS,
    MAX_TEXT_CHARS,
    OBJECT,
    TEXT,
    FailedItem,
    Text,
    Timings,
    WireModel,
)

Label = Literal["negative", "neutral", "positive"]


class SentimentItem(WireModel):
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


class SentimentRequest(WireModel):
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


class SentimentResult(WireModel):
    label: Label
    scores: Annotated[dict[Label, float], Field(description="calibrated probabilities; they sum to 1")]
    polarity: Annotated[float, Field(ge=-1, le=1, description="P(positive) - P(negative)")]
    tokens: Annotated[int, Field(ge=0, description="tokens that the model read")]
    truncated: Annotated[bool, Field(description="whether the text was longer than the model reads")]
    id: str | None


class SentimentResponse(WireModel):
    """Results are in the order of the inputs; one that failed carries an error, its neighbours are unharmed."""

    model: str
    version: str
    results: list[SentimentResult | FailedItem]
    timings_ms: Timings
