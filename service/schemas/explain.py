"""Schemas of `/v1/explain/{sentiment,intent,replies}`, and their limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from models.explain.methods import IntentMethod, ReplyMethod, SentimentMethod
from service.schemas import explanation_examples as examples
from service.schemas.intent import (
    MAX_CANDIDATES,
    MAX_TURNS,
    DialogueTurn,
    IntentInputs,
    RankedReply,
    Reply,
    check_dialogue,
)
from service.schemas.sentiment import Label, SentimentInputs
from service.schemas.wire import LIST, TEXT, FailedItem, LanguageFields, Name, WireModel

MAX_EXPLAINED, MAX_MAPPED = 16, 4
MAX_COMPARED = 64  # candidates without a target, which the model must all read to find the best
MAX_MAP_NUMBERS = 2**18  # weights in a JSON answer: a map of 512 tokens, or 12 heads for 147, about 2 MB of JSON
MAX_PACKED_NUMBERS = 2**21  # weights in a file of arrays, 8 MB
MAX_LAYERS = 64

Method = Literal["auto", SentimentMethod, IntentMethod, ReplyMethod, "attention"]
Reduce = Literal["mean", "rollout"]


def _heads_branch(value: Any) -> str | None:
    return LIST if isinstance(value, list) else TEXT if isinstance(value, str) else None


_Indexes = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MAX_LAYERS)]
_METHOD = Field(description="attribution method; auto is the best one for its time in measurements")


class ExplainOptions(WireModel):
    """The method of an explanation, and the attention maps to show."""

    method: Annotated[Method, _METHOD] = "auto"
    layers: Annotated[
        _Indexes | None,
        Field(description="layers to show, counted from 0; required with attention, unless it is a rollout"),
    ] = None
    heads: Annotated[
        Annotated[
            Annotated[Literal["all"], Tag(TEXT)] | Annotated[_Indexes, Tag(LIST)],
            Discriminator(
                _heads_branch,
                custom_error_type="input_type",
                custom_error_message="Input should be 'all' or a list of whole numbers",
            ),
        ]
        | None,
        Field(description="attention heads to show, counted from 0; all by default"),
    ] = None
    reduce: Annotated[
        Reduce | None,
        Field(description="show a single map: the mean of these maps, or attention through all layers"),
    ] = None

    @model_validator(mode="after")
    def _check_maps(self) -> ExplainOptions:
        maps = (self.layers, self.heads, self.reduce)
        if self.method != "attention" and maps != (None, None, None):
            raise PydanticCustomError("no_attention", "Layers, heads and reduce are for the method attention")
        if self.reduce == "rollout" and maps[:2] != (None, None):
            raise PydanticCustomError("whole_rollout", "A rollout is through all layers and heads; name none")
        if self.method == "attention" and self.reduce != "rollout" and self.layers is None:
            raise PydanticCustomError("no_layers", "The method attention needs layers")
        return self


class ExplainRequest(ExplainOptions):
    """A text, or a list of at most 16 texts; at most 4 with the method `attention`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [examples.EXPLAIN_SENTIMENT_REQUEST, examples.ATTENTION_REQUEST]}
    )

    method: Annotated[Literal["auto", SentimentMethod, "attention"], _METHOD] = "auto"
    inputs: SentimentInputs
    target: Annotated[Label | None, Field(description="label to explain; the predicted label by default")] = None


class ExplainIntentRequest(ExplainOptions):
    """A text or dialogue, or a list of at most 16 of them; at most 4 with the method `attention`."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EXPLAIN_INTENT_REQUEST]})

    method: Annotated[Literal["auto", IntentMethod, "attention"], _METHOD] = "auto"
    inputs: IntentInputs
    label_set: Annotated[Name | None, Field(description="name of a label set; HEED_LABEL_SET by default")] = None
    target: Annotated[
        Name | None,
        Field(description="intent to explain; the most probable one by default"),
    ] = None


class ExplainRepliesRequest(ExplainOptions):
    """A dialogue with candidates or the name of a reply set, and the reply to explain."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EXPLAIN_REPLIES_REQUEST]})

    method: Annotated[Literal["auto", ReplyMethod, "attention"], _METHOD] = "auto"
    turns: Annotated[list[DialogueTurn], Field(min_length=1, max_length=MAX_TURNS, description="oldest first")]
    candidates: Annotated[list[Reply] | None, Field(min_length=1, max_length=MAX_CANDIDATES)] = None
    reply_set: Annotated[Name | None, Field(description="name of a reply set")] = None
    target: Annotated[
        int | None,
        Field(ge=0, description="index of the reply to explain; the best reply by default"),
    ] = None

    @model_validator(mode="after")
    def _candidates_or_set(self) -> ExplainRepliesRequest:
        check_dialogue(self.turns, self.candidates, self.reply_set)
        return self


class WordWeight(WireModel):
    """The attribution of a word."""

    text: str
    start: Annotated[int, Field(ge=0, description="offset in the text, in Unicode code points")]
    end: Annotated[int, Field(ge=0)]
    weight: Annotated[float, Field(description="effect on the target's probability; if unsigned, share of attention")]
    is_entity: Annotated[bool, Field(description="part of the entity, which is never removed and has weight 0")]


class TurnWord(WireModel):
    """The attribution of a word in a turn."""

    text: str
    start: Annotated[int, Field(ge=0, description="offset in the text of the turn, in Unicode code points")]
    end: Annotated[int, Field(ge=0)]
    weight: Annotated[float, Field(description="effect on the target's score; if unsigned, share of attention")]


class Span(WireModel):
    """A part of a text, in Unicode code points."""

    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]


class TurnWeights(WireModel):
    """The attribution of a turn and of its words."""

    turn: Annotated[int, Field(ge=0, description="index among the turns of the request")]
    weight: Annotated[
        float | None,
        Field(description="attribution of the whole turn; null if it is the only one"),
    ]
    words: list[TurnWord]
    read_span: Annotated[Span, Field(description="the part of the turn that the model read")]


class AttentionMaps(WireModel):
    """Attention between the tokens of an input, by layer and head."""

    model_layers: Annotated[int, Field(ge=1, description="number of layers of the model")]
    model_heads: Annotated[int, Field(ge=1, description="number of heads per layer")]
    tokens: list[str]
    layers: list[int]
    heads: list[int]
    reduce: Annotated[Reduce | None, Field(description="how these layers and heads became a single map")]
    weights: Annotated[
        list[list[list[list[float]]]],
        Field(
            description="[layer][head][from][to]: the share of attention from a token to a token, with 4 decimals. "
            "A reduced map is a single layer and head"
        ),
    ]


class ExplanationFields(LanguageFields):
    """A positive weight speaks for the target and a negative weight against it, if the method is `signed`."""

    method: str
    signed: Annotated[bool, Field(description="if false, weights are shares of attention and speak for no label")]
    attention: AttentionMaps | None = None
    tokens: Annotated[int, Field(ge=0, description="number of tokens that the model read")]
    truncated: Annotated[bool, Field(description="whether the text was longer than the model reads")]


class ExplainResult(ExplanationFields):
    """The label of a text and the words behind it."""

    label: Label
    scores: Annotated[dict[Label, float], Field(description="calibrated probabilities; they sum to 1")]
    target: Label
    words: list[WordWeight]
    read_span: Annotated[Span, Field(description="the part of the text that the model read")]
    id: str | None


class ExplainIntentResult(ExplanationFields):
    """The intent of a text or dialogue, and the turns and words behind the target."""

    intent: Annotated[str | None, Field(description="null when out of scope")]
    out_of_scope: bool
    out_of_scope_score: Annotated[float, Field(ge=0, le=1)]
    target: str
    confidence: Annotated[float, Field(ge=0, le=1, description="calibrated probability of the target")]
    turns: Annotated[list[TurnWeights], Field(description="the turns that the model read, oldest first")]
    turns_dropped: Annotated[int, Field(ge=0, description="number of oldest turns that did not fit")]
    id: str | None


class ExplainReplyResult(ExplanationFields):
    """A reply and the turns and words behind it."""

    target: Annotated[RankedReply, Field(description="the reply that is explained")]
    turns: Annotated[list[TurnWeights], Field(description="the turns that the model read, oldest first")]
    turns_dropped: Annotated[int, Field(ge=0, description="number of oldest turns that did not fit")]


class ExplainTimings(WireModel):
    """Milliseconds of waiting for earlier explanations, and of the work for this request."""

    queue: float
    explain: float


class ExplainResponse(WireModel):
    """Results in the order of the inputs. An input that failed has an error, and does not affect the rest."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EXPLAIN_SENTIMENT_RESPONSE]})

    model: str
    version: str
    results: list[ExplainResult | FailedItem]
    timings_ms: ExplainTimings


class ExplainIntentResponse(WireModel):
    """Results in the order of the inputs. An input that failed has an error, and does not affect the rest."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EXPLAIN_INTENT_RESPONSE]})

    model: str
    version: str
    results: list[ExplainIntentResult | FailedItem]
    label_set: Annotated[str, Field(description="name of the label set")]
    timings_ms: ExplainTimings


class ExplainRepliesResponse(WireModel):
    """A single result, because a request has a single dialogue."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EXPLAIN_REPLIES_RESPONSE]})

    model: str
    version: str
    results: list[ExplainReplyResult]
    timings_ms: ExplainTimings
