"""Schemas of `/v1/intent` and `/v1/replies`, and their limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from service.schemas import examples
from service.schemas.wire import (
    MAX_ID_CHARS,
    MAX_INPUTS,
    MAX_TEXT_CHARS,
    MAX_TOP_K,
    READABLE,
    FailedItem,
    LanguageFields,
    Name,
    Share,
    Timings,
    WireModel,
    one_or_many,
)

MAX_TURNS = 256
MAX_CANDIDATES = 1_000
MAX_REPLY_CHARS = 10_000

Reply = Annotated[str, Field(max_length=MAX_REPLY_CHARS), READABLE]


class DialogueTurn(WireModel):
    """A turn of a dialogue between a customer and an agent."""

    speaker: Literal["customer", "agent"]
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARS), READABLE]


class IntentItem(WireModel):
    """A text or the turns of a dialogue, never both."""

    text: Annotated[str | None, Field(max_length=MAX_TEXT_CHARS, description="message of a customer")] = None
    turns: Annotated[
        list[DialogueTurn] | None,
        Field(
            min_length=1,
            max_length=MAX_TURNS,
            description="dialogue, oldest turn first; its newest customer turn is classified",
        ),
    ] = None
    id: Annotated[str | None, Field(max_length=MAX_ID_CHARS, description="comes back with the result")] = None

    @model_validator(mode="after")
    def _text_or_turns(self) -> IntentItem:
        if (self.text is None) == (self.turns is None):
            raise PydanticCustomError("input_type", "Input should have either a text or turns")
        if self.turns is not None and all(turn.speaker != "customer" for turn in self.turns):
            raise PydanticCustomError("no_customer", "Input should have a turn of the customer")
        return self


IntentInputs = Annotated[
    str | IntentItem | list[str | IntentItem],
    one_or_many(IntentItem, "an object with a text or turns", MAX_INPUTS, or_text=True),
]


class IntentRequest(WireModel):
    """A text or dialogue, or a list of them. If a key comes twice, its last value counts."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.INTENT_REQUEST]})

    inputs: IntentInputs
    label_set: Annotated[Name | None, Field(description="name of a label set; HEED_LABEL_SET by default")] = None
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="number of intents in the ranking")] = 3
    threshold: Annotated[
        Share | None,
        Field(description="out of scope above this score; default: the label set's threshold"),
    ] = None
    truncate: Annotated[bool, Field(description="shorten a long text and mark its result; false refuses it")] = True


class RankedIntent(WireModel):
    """An intent and its calibrated probability."""

    intent: str
    confidence: float


class IntentResult(LanguageFields):
    """The intent of a text or dialogue."""

    intent: Annotated[str | None, Field(description="null when out of scope")]
    confidence: Annotated[float, Field(ge=0, le=1, description="calibrated probability of the first intent")]
    out_of_scope: bool
    out_of_scope_score: Annotated[
        float, Field(ge=0, le=1, description="share of in-scope texts that fit the label set better than this text")
    ]
    ranking: list[RankedIntent]
    turns_used: Annotated[int, Field(ge=1, description="number of turns that the model read")]
    turns_dropped: Annotated[int, Field(ge=0, description="number of oldest turns that did not fit")]
    tokens: Annotated[int, Field(ge=0, description="number of tokens that the model read")]
    truncated: Annotated[bool, Field(description="whether the newest turn was longer than the model reads")]
    id: str | None


class RepliesRequest(WireModel):
    """A dialogue, with candidates or the name of a reply set."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.REPLIES_REQUEST]})

    turns: Annotated[list[DialogueTurn], Field(min_length=1, max_length=MAX_TURNS, description="oldest first")]
    candidates: Annotated[list[Reply] | None, Field(min_length=1, max_length=MAX_CANDIDATES)] = None
    reply_set: Annotated[Name | None, Field(description="name of a reply set")] = None
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="number of replies to return")] = 5
    threshold: Annotated[
        Share | None,
        Field(description="no good reply below this score; default: the model's threshold"),
    ] = None

    @model_validator(mode="after")
    def _candidates_or_set(self) -> RepliesRequest:
        check_dialogue(self.turns, self.candidates, self.reply_set)
        return self


def check_dialogue(turns: Sequence[DialogueTurn], candidates: Sequence[str] | None, reply_set: str | None) -> None:
    """Raise an error unless there is a customer's turn, and either distinct candidates or a reply set."""
    if (candidates is None) == (reply_set is None):
        raise PydanticCustomError("input_type", "Input should have either candidates or a reply_set")
    if all(turn.speaker != "customer" for turn in turns):
        raise PydanticCustomError("no_customer", "Input should have a turn of the customer")
    first_indexes: dict[str, int] = {}
    for index, text in enumerate(candidates or ()):
        if (first := first_indexes.setdefault(text, index)) != index:
            raise PydanticCustomError(
                "duplicate", "Candidates {first} and {second} are the same", {"first": first, "second": index}
            )


class RankedReply(WireModel):
    """A reply, with the probability that an agent gives it rather than another reply."""

    index: Annotated[int, Field(ge=0, description="index among the candidates or in the reply set")]
    text: str
    score: Annotated[float, Field(ge=0, le=1)]


class IntentResponse(WireModel):
    """Results in the order of the inputs. An input that failed has an error, and does not affect the rest."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.INTENT_RESPONSE]})

    model: str
    version: str
    results: list[IntentResult | FailedItem]
    label_set: Annotated[str, Field(description="name of the label set")]
    timings_ms: Timings


class RepliesResponse(LanguageFields):
    """Replies with their scores, best first."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.REPLIES_RESPONSE]})

    model: str
    version: str
    results: list[RankedReply]
    no_good_reply: Annotated[bool, Field(description="true if the best score is below the threshold")]
    turns_used: int
    turns_dropped: int
    truncated: bool
    timings_ms: Timings
