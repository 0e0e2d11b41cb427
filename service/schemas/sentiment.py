"""Schemas of `/v1/sentiment`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from service.schemas import examples
from service.schemas.wire import (
    MAX_ENTITY_CHARS,
    MAX_ID_CHARS,
    MAX_INPUTS,
    MAX_TEXT_CHARS,
    FailedItem,
    LanguageFields,
    Timings,
    WireModel,
    one_or_many,
)

Label = Literal["negative", "neutral", "positive"]


class SentimentItem(WireModel):
    """A text, with an entity for the sentiment towards it."""

    text: Annotated[str, Field(max_length=MAX_TEXT_CHARS, description="English or Chinese text")]
    entity: Annotated[
        str | None,
        Field(
            max_length=MAX_ENTITY_CHARS,
            description="company or thing that the text names: the answer is the sentiment towards it",
        ),
    ] = None
    id: Annotated[str | None, Field(max_length=MAX_ID_CHARS, description="comes back with the result")] = None


SentimentInputs = Annotated[
    str | SentimentItem | list[str | SentimentItem],
    one_or_many(SentimentItem, "an object with a text", MAX_INPUTS, or_text=True),
]


class SentimentRequest(WireModel):
    """A text, or a list of texts. If a key comes twice, its last value counts."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.SENTIMENT_REQUEST]})

    inputs: SentimentInputs
    truncate: Annotated[bool, Field(description="shorten a long text and mark its result; false refuses it")] = True


class SentimentResult(LanguageFields):
    """The sentiment of a text. If the text does not name the entity, `label`, `scores` and `polarity` are null."""

    label: Label | None
    scores: Annotated[dict[Label, float] | None, Field(description="calibrated probabilities; they sum to 1")]
    polarity: Annotated[float | None, Field(ge=-1, le=1, description="P(positive) - P(negative)")]
    found: Annotated[bool | None, Field(description="whether the text names the entity; absent without an entity")] = (
        None
    )
    tokens: Annotated[int, Field(ge=0, description="number of tokens that the model read")]
    truncated: Annotated[bool, Field(description="whether the text was longer than the model reads")]
    id: str | None


class SentimentResponse(WireModel):
    """Results in the order of the inputs. An input that failed has an error, and does not affect the rest."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.SENTIMENT_RESPONSE]})

    model: str
    version: str
    results: list[SentimentResult | FailedItem]
    timings_ms: Timings
