"""The wire of explanations: what callers ask and get, and every limit of it. As `schemas` in all else."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from models.explain.methods import IntentMethod, ReplyMethod, SentimentMethod
from service.schemas.intent import (
    MAX_CANDIDATES,
    MAX_TURNS,
    DialogueTurn,
    IntentInputs,
    RankedReply,
    Reply,
    refuse_unlike_a_dialogue,
)
from service.schemas.sentiment import Label, SentimentInputs
from service.schemas.wire import LIST, MAX_NAME_CHARS, TEXT, FailedItem, WireModel

MAX_EXPLAINED, MAX_MAPPED = 16, 4
MAX_COMPARED = 64  # candidates that are read to find the one to explain
MAX_MAP_NUMBERS = 2**18  # in one answer: one map of 512 tokens, or 12 heads for 147, and about 2 MB of JSON
MAX_PACKED_NUMBERS = 2**21  # in one file of arrays, 8 MB
MAX_LAYERS = 64

Method = Literal["auto", SentimentMethod, IntentMethod, ReplyMethod, "attention"]
Reduce = Literal["mean", "rollout"]


def _heads_branch(value: Any) -> str | None:
    return LIST if isinstance(value, list) else TEXT if isinstance(value, str) else None


_Places = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MAX_LAYERS)]


HOW = Field(description="how words are weighed; auto is the one measured to be best for its time")


class ExplainOptions(WireModel):
    """What all requests for explanations say of how."""

    method: Annotated[Method, HOW] = "auto"
    layers: Annotated[
        _Places | None,
        Field(description="with attention, and needed there but for a rollout: layers to show, counted from 0"),
    ] = None
    heads: Annotated[
        Annotated[
            Annotated[Literal["all"], Tag(TEXT)] | Annotated[_Places, Tag(LIST)],
            Discriminator(
                _heads_branch,
                custom_error_type="input_type",
                custom_error_message="Input should be 'all' or a list of whole numbers",
            ),
        ]
        | None,
        Field(description="with attention: heads to show, counted from 0; all if not given"),
    ] = None
    reduce: Annotated[
        Reduce | None,
        Field(description="with attention: one map, the mean of those asked for, or attention through all layers"),
    ] = None

    @model_validator(mode="after")
    def _attention_or_not(self) -> ExplainOptions:
        shown = (self.layers, self.heads, self.reduce)
        if self.method != "attention" and shown != (None, None, None):
            raise PydanticCustomError("no_attention", "Layers, heads and reduce are for the method attention")
        if self.reduce == "rollout" and shown[:2] != (None, None):
            raise PydanticCustomError("whole_rollout", "A rollout is through all layers and heads; name none")
        if self.method == "attention" and self.reduce != "rollout" and self.layers is None:
            raise PydanticCustomError("no_layers", "The method attention needs layers")
        return self


class ExplainRequest(ExplainOptions):
    """One text, or a list of at most 16 of them, of at most 4 for attention."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": ["Shares of Acme plunge after profit warning"], "method": "auto", "target": None},
                {
                    "inputs": {"text": "A beats B", "entity": "A", "id": "n-17"},
                    "method": "attention",
                    "layers": [7],
                    "heads": "all",
                },
            ]
        }
    )

    method: Annotated[Literal["auto", SentimentMethod, "attention"], HOW] = "auto"
    inputs: SentimentInputs
    target: Annotated[Label | None, Field(description="the label that weights speak for; the answer if not given")] = (
        None
    )


class ExplainIntentRequest(ExplainOptions):
    """One text or dialogue, or a list of at most 16 of them, of at most 4 for attention."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"inputs": "where is my card?", "label_set": "banking77", "target": "lost_or_stolen_card"},
                {
                    "inputs": {
                        "id": "c-9",
                        "turns": [
                            {"speaker": "customer", "text": "I lost a card"},
                            {"speaker": "agent", "text": "Which one?"},
                            {"speaker": "customer", "text": "the blue one"},
                        ],
                    }
                },
            ]
        }
    )

    method: Annotated[Literal["auto", IntentMethod, "attention"], HOW] = "auto"
    inputs: IntentInputs
    label_set: Annotated[
        str | None, Field(max_length=MAX_NAME_CHARS, description="which intents; HEED_LABEL_SET if not given")
    ] = None
    target: Annotated[
        str | None,
        Field(max_length=MAX_NAME_CHARS, description="the intent that weights speak for; the likeliest if not given"),
    ] = None


class ExplainRepliesRequest(ExplainOptions):
    """A dialogue, with candidates of its own or the name of a reply set, and which of them is to be explained."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "turns": [{"speaker": "customer", "text": "I need a hotel in the north"}],
                    "candidates": ["What is your name?", "What is your price range?", "Goodbye!"],
                    "target": 1,
                }
            ]
        }
    )

    method: Annotated[Literal["auto", ReplyMethod, "attention"], HOW] = "auto"
    turns: Annotated[list[DialogueTurn], Field(min_length=1, max_length=MAX_TURNS, description="oldest first")]
    candidates: Annotated[list[Reply] | None, Field(min_length=1, max_length=MAX_CANDIDATES)] = None
    reply_set: Annotated[str | None, Field(max_length=MAX_NAME_CHARS, description="name of a registered set")] = None
    target: Annotated[
        int | None, Field(ge=0, description="place among the candidates, or in the set; the best if not given")
    ] = None

    @model_validator(mode="after")
    def _like_a_dialogue(self) -> ExplainRepliesRequest:
        refuse_unlike_a_dialogue(self.turns, self.candidates, self.reply_set)
        return self


class WordWeight(WireModel):
    text: str
    start: Annotated[int, Field(ge=0, description="in characters of the text (Unicode code points)")]
    end: Annotated[int, Field(ge=0)]
    weight: Annotated[float, Field(description="points of the target's probability; unsigned: a share of attention")]
    is_entity: Annotated[bool, Field(description="part of the entity asked about, which is never taken away: weight 0")]


class TurnWord(WireModel):
    text: str
    start: Annotated[int, Field(ge=0, description="in characters of its turn's text (Unicode code points)")]
    end: Annotated[int, Field(ge=0)]
    weight: Annotated[float, Field(description="points of the target's score; unsigned: a share of attention")]


class Span(WireModel):
    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]


class TurnWeights(WireModel):
    turn: Annotated[int, Field(ge=0, description="its place among the turns as sent, counted from 0")]
    weight: Annotated[
        float | None, Field(description="of the turn as a whole, by the same method; null where no other was read")
    ]
    words: list[TurnWord]
    read_span: Annotated[Span, Field(description="the part of the turn's text that was read")]


class AttentionMaps(WireModel):
    model_layers: Annotated[int, Field(ge=1, description="how many there are to ask for")]
    model_heads: Annotated[int, Field(ge=1, description="in each of them")]
    tokens: list[str]
    layers: list[int]
    heads: list[int]
    reduce: Annotated[Reduce | None, Field(description="how the maps of these layers and heads became one")]
    weights: Annotated[
        list[list[list[list[float]]]],
        Field(
            description="[layer][head][from][to]: the share each token takes from each, rounded to 4 places; "
            "reduced: one layer and one head"
        ),
    ]


class ExplanationFields(WireModel):
    """A positive weight speaks for the target, a negative one against it, where the method is `signed`."""

    method: str
    signed: Annotated[bool, Field(description="else weights are where the model looks, and speak for no label")]
    attention: AttentionMaps | None = None
    tokens: Annotated[int, Field(ge=0, description="tokens that the model read")]
    truncated: Annotated[bool, Field(description="whether the text was longer than the model reads")]


class ExplainResult(ExplanationFields):
    label: Label
    scores: Annotated[dict[Label, float], Field(description="calibrated probabilities; they sum to 1")]
    target: Label
    words: list[WordWeight]
    read_span: Annotated[Span, Field(description="the part of the text that was read and explained")]
    id: str | None


class ExplainIntentResult(ExplanationFields):
    intent: Annotated[str | None, Field(description="null when out of scope")]
    out_of_scope: bool
    out_of_scope_score: Annotated[float, Field(ge=0, le=1)]
    target: str
    confidence: Annotated[float, Field(ge=0, le=1, description="calibrated, of the target")]
    turns: Annotated[list[TurnWeights], Field(description="those that the model read, oldest first")]
    turns_dropped: Annotated[int, Field(ge=0, description="oldest turns that did not fit")]
    id: str | None


class ExplainReplyResult(ExplanationFields):
    target: Annotated[RankedReply, Field(description="the reply that weights speak for")]
    turns: Annotated[list[TurnWeights], Field(description="those that the model read, oldest first")]
    turns_dropped: Annotated[int, Field(ge=0, description="oldest turns that did not fit")]


class ExplainTimings(WireModel):
    """Milliseconds: waiting for other explanations, and the work of this one."""

    queue: float
    explain: float


class ExplainResponse(WireModel):
    """Results are in the order of the inputs; one that failed carries an error, its neighbours are unharmed."""

    model: str
    version: str
    results: list[ExplainResult | FailedItem]
    timings_ms: ExplainTimings


class ExplainIntentResponse(WireModel):
    """Results are in the order of the inputs; one that failed carries an error, its neighbours are unharmed."""

    model: str
    version: str
    results: list[ExplainIntentResult | FailedItem]
    label_set: Annotated[str, Field(description="the label set that was asked")]
    timings_ms: ExplainTimings


class ExplainRepliesResponse(WireModel):
    """One result: there is one dialogue and one reply."""

    model: str
    version: str
    results: list[ExplainReplyResult]
    timings_ms: ExplainTimings
