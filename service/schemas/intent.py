"""The wire of intents and replies: what callers ask and get, and every limit of it. As `schemas` in all else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from service.schemas.wire import (
    LIST,
    MAX_ID_CHARS,
    MAX_INPUTS,
    MAX_NAME_CHARS,
    MAX_TEXT_CHARS,
    MAX_TOP_K,
    OBJECT,
    READABLE,
    TEXT,
    FailedItem,
    Text,
    Timings,
    WireModel,
)

MAX_TURNS = 256
MAX_CANDIDATES = 1_000
MAX_REPLY_CHARS = 10_000

Reply = Annotated[str, Field(max_length=MAX_REPLY_CHARS), READABLE]


class DialogueTurn(WireModel):
    speaker: Literal["customer", "agent"]
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARS), READABLE]


class IntentItem(WireModel):
    """Either a text or turns."""

    text: Annotated[str | None, Field(max_length=MAX_TEXT_CHARS, description="what a customer says")] = None
    turns: Annotated[
        list[DialogueTurn] | None,
        Field(
            min_length=1, max_length=MAX_TURNS, description="a dialogue, oldest first; its newest customer turn counts"
        ),
    ] = None
    id: Annotated[str | None, Field(max_length=MAX_ID_CHARS, description="comes back with the result")] = None

    @model_validator(mode="after")
    def _one_of_both(self) -> IntentItem:
        if (self.text is None) == (self.turns is None):
            raise PydanticCustomError("input_type", "Input should have either a text or turns")
        if self.turns is not None and all(turn.speaker != "customer" for turn in self.turns):
            raise PydanticCustomError("no_customer", "Input should have a turn of the customer")
        return self


def _intent_branch(value: Any) -> str | None:
    return TEXT if isinstance(value, str) else OBJECT if isinstance(value, dict | IntentItem) else None


def _intents_branch(value: Any) -> str | None:
    return LIST if isinstance(value, list) else _intent_branch(value)


_IntentObject = Annotated[IntentItem, Tag(OBJECT)]
_IntentItem = Annotated[
    Text | _IntentObject,
    Discriminator(
        _intent_branch,
        custom_error_type="input_type",
        custom_error_message="Input should be a string or an object with a text or turns",
    ),
]
_IntentList = Annotated[list[_IntentItem], Field(min_length=1, max_length=MAX_INPUTS), Tag(LIST)]

IntentInputs = Annotated[
    Text | _IntentObject | _IntentList,
    Discriminator(
        _intents_branch,
        custom_error_type="input_type",
        custom_error_message="Input should be a string, an object with a text or turns, or a list of either",
    ),
]


class IntentRequest(WireModel):
    """One text or dialogue, or a list of them. Of a key that is given twice the last value counts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        "where is my card?",
                        {
                            "id": "c-9",
                            "turns": [
                                {"speaker": "customer", "text": "I lost a card"},
                                {"speaker": "agent", "text": "Which one?"},
                                {"speaker": "customer", "text": "the blue one"},
                            ],
                        },
                    ],
                    "label_set": "banking77",
                    "top_k": 3,
                    "threshold": None,
                }
            ]
        }
    )

    inputs: IntentInputs
    label_set: Annotated[
        str | None, Field(max_length=MAX_NAME_CHARS, description="which intents; HEED_LABEL_SET if not given")
    ] = None
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="intents in the ranking")] = 3
    threshold: Annotated[
        float | None, Field(ge=0, le=1, description="out of scope above this score; that of the intents if not given")
    ] = None
    truncate: Annotated[bool, Field(description="shorten over-long texts and say so; false refuses them")] = True


class RankedIntent(WireModel):
    intent: str
    confidence: float


class IntentResult(WireModel):
    intent: Annotated[str | None, Field(description="null when out of scope")]
    confidence: Annotated[float, Field(ge=0, le=1, description="calibrated, of the first of the ranking")]
    out_of_scope: bool
    out_of_scope_score: Annotated[
        float, Field(ge=0, le=1, description="share of texts that do belong which look more like it than this one")
    ]
    ranking: list[RankedIntent]
    turns_used: Annotated[int, Field(ge=1, description="turns that the model read")]
    turns_dropped: Annotated[int, Field(ge=0, description="oldest turns that did not fit")]
    tokens: Annotated[int, Field(ge=0, description="tokens that the model read")]
    truncated: Annotated[bool, Field(description="whether the newest turn was longer than the model reads")]
    id: str | None


class RepliesRequest(WireModel):
    """A dialogue, with candidates of its own or the name of a reply set."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "turns": [{"speaker": "customer", "text": "I need a hotel in the north"}],
                    "candidates": ["What is your name?", "What is your price range?", "Goodbye!"],
                    "top_k": 2,
                }
            ]
        }
    )

    turns: Annotated[list[DialogueTurn], Field(min_length=1, max_length=MAX_TURNS, description="oldest first")]
    candidates: Annotated[list[Reply] | None, Field(min_length=1, max_length=MAX_CANDIDATES)] = None
    reply_set: Annotated[str | None, Field(max_length=MAX_NAME_CHARS, description="name of a registered set")] = None
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="replies to return")] = 5
    threshold: Annotated[
        float | None, Field(ge=0, le=1, description="no good reply under this score; the model's own if not given")
    ] = None

    @model_validator(mode="after")
    def _one_of_both(self) -> RepliesRequest:
        refuse_unlike_a_dialogue(self.turns, self.candidates, self.reply_set)
        return self


def refuse_unlike_a_dialogue(
    turns: Sequence[DialogueTurn], candidates: Sequence[str] | None, reply_set: str | None
) -> None:
    """A dialogue has a customer, and either different candidates or a set."""
    if (candidates is None) == (reply_set is None):
        raise PydanticCustomError("input_type", "Input should have either candidates or a reply_set")
    if all(turn.speaker != "customer" for turn in turns):
        raise PydanticCustomError("no_customer", "Input should have a turn of the customer")
    places: dict[str, int] = {}
    for number, text in enumerate(candidates or ()):
        if (first := places.setdefault(text, number)) != number:
            raise PydanticCustomError(
                "duplicate", "Candidates {first} and {second} are the same", {"first": first, "second": number}
            )


class RankedReply(WireModel):
    index: Annotated[int, Field(ge=0, description="place among the candidates, or in the set")]
    text: str
    score: Annotated[float, Field(ge=0, le=1)]


class IntentResponse(WireModel):
    """Results are in the order of the inputs; one that failed carries an error, its neighbours are unharmed."""

    model: str
    version: str
    results: list[IntentResult | FailedItem]
    label_set: Annotated[str, Field(description="the label set that was asked")]
    timings_ms: Timings


class RepliesResponse(WireModel):
    """The best reply first."""

    model: str
    version: str
    results: list[RankedReply]
    no_good_reply: bool
    turns_used: int
    turns_dropped: int
    truncated: bool
    timings_ms: Timings
