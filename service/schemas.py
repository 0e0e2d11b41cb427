"""The wire: what callers send and get, and every limit of it.

Shapes are strict (no coercion, no unknown field) and bounded. This knows nothing of models or of HTTP; what a text
means, and whether one of many texts can be answered, is decided further in and comes back as that item's `error`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from models.tokens import is_readable

MAX_INPUTS = 256
MAX_TEXT_CHARS = 2_000_000  # above the body limit on purpose: over-long texts are truncated, not refused
MAX_ENTITY_CHARS = 1_000
MAX_ID_CHARS = 256
MAX_NAME_CHARS = 128
MAX_TURNS = 256
MAX_TOP_K = 100
MAX_CANDIDATES = 1_000
MAX_REPLY_CHARS = 10_000
MAX_EXPLAINED = 16
MAX_MAPPED, MAX_MAPPED_TOKENS = 4, 128
MAX_MAP_NUMBERS = 200_000  # in one answer: all heads of a layer for 128 tokens, and about 1.5 MB of JSON
MAX_LAYERS = 64

# Branch names of the union below. pydantic puts them into the location of an error; `bodies` takes them out again.
TEXT, OBJECT, LIST = "(text)", "(object)", "(list)"
BRANCHES = frozenset({TEXT, OBJECT, LIST})

Label = Literal["negative", "neutral", "positive"]


class Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def _readable(text: str) -> str:
    if not is_readable(text):
        raise PydanticCustomError("empty_text", "Input holds nothing that can be read")
    return text


_Reply = Annotated[str, Field(max_length=MAX_REPLY_CHARS), AfterValidator(_readable)]


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


def _heads_branch(value: Any) -> str | None:
    return LIST if isinstance(value, list) else TEXT if isinstance(value, str) else None


# Chosen by a function and not tried in turn, so that a wrong input gives one error that says what is expected.
_Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS), Tag(TEXT)]
_Object = Annotated[SentimentItem, Tag(OBJECT)]
_Item = Annotated[
    _Text | _Object,
    Discriminator(
        _item_branch,
        custom_error_type="input_type",
        custom_error_message="Input should be a string or an object with a text",
    ),
]
_List = Annotated[list[_Item], Field(min_length=1, max_length=MAX_INPUTS), Tag(LIST)]


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

    inputs: Annotated[
        _Text | _Object | _List,
        Discriminator(
            _branch,
            custom_error_type="input_type",
            custom_error_message="Input should be a string, an object with a text, or a list of either",
        ),
    ]
    truncate: Annotated[bool, Field(description="shorten over-long texts and say so; false refuses them")] = True


class SentimentResult(Wire):
    label: Label
    scores: Annotated[dict[Label, float], Field(description="calibrated probabilities; they sum to 1")]
    polarity: Annotated[float, Field(ge=-1, le=1, description="P(positive) - P(negative)")]
    tokens: Annotated[int, Field(ge=0, description="tokens that the model read")]
    truncated: Annotated[bool, Field(description="whether the text was longer than the model reads")]
    id: str | None


_Places = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MAX_LAYERS)]


class ExplainRequest(Wire):
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

    inputs: Annotated[
        _Text | _Object | _List,
        Discriminator(
            _branch,
            custom_error_type="input_type",
            custom_error_message="Input should be a string, an object with a text, or a list of either",
        ),
    ]
    method: Annotated[
        Literal["auto", "both_ends", "occlusion", "shapley", "value_norm", "attention"],
        Field(description="how words are weighed; auto is the one measured to be best for its time"),
    ] = "auto"
    target: Annotated[Label | None, Field(description="the label that weights speak for; the answer if not given")] = (
        None
    )
    layers: Annotated[
        _Places | None, Field(description="with attention, and needed there: layers to show, counted from 0")
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

    @model_validator(mode="after")
    def _attention_or_not(self) -> ExplainRequest:
        if self.method == "attention" and self.layers is None:
            raise PydanticCustomError("no_layers", "The method attention needs layers")
        if self.method != "attention" and (self.layers is not None or self.heads is not None):
            raise PydanticCustomError("no_attention", "Layers and heads are for the method attention")
        return self


class WordWeight(Wire):
    text: str
    start: Annotated[int, Field(ge=0, description="in characters of the text (Unicode code points)")]
    end: Annotated[int, Field(ge=0)]
    weight: Annotated[float, Field(description="points of the target's probability; unsigned: a share of attention")]
    named: Annotated[bool, Field(description="part of the entity asked about, which is never taken away: weight 0")]


class Span(Wire):
    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]


class AttentionMaps(Wire):
    model_layers: Annotated[int, Field(ge=1, description="how many there are to ask for")]
    model_heads: Annotated[int, Field(ge=1, description="in each of them")]
    tokens: list[str]
    layers: list[int]
    heads: list[int]
    weights: Annotated[
        list[list[list[list[float]]]],
        Field(description="[layer][head][from][to]: the share each token takes from each, rounded to 4 places"),
    ]


class ExplainResult(Wire):
    """A positive weight speaks for the target, a negative one against it, where the method is `signed`."""

    label: Label
    scores: Annotated[dict[Label, float], Field(description="calibrated probabilities; they sum to 1")]
    method: str
    signed: Annotated[bool, Field(description="else weights are where the model looks, and speak for no label")]
    target: Label
    words: list[WordWeight]
    read: Annotated[Span, Field(description="the part of the text that was read and explained")]
    attention: AttentionMaps | None = None
    tokens: Annotated[int, Field(ge=0, description="tokens that the model read")]
    truncated: Annotated[bool, Field(description="whether the text was longer than the model reads")]
    id: str | None


class DialogueTurn(Wire):
    speaker: Literal["customer", "agent"]
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARS), AfterValidator(_readable)]


class IntentItem(Wire):
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
    _Text | _IntentObject,
    Discriminator(
        _intent_branch,
        custom_error_type="input_type",
        custom_error_message="Input should be a string or an object with a text or turns",
    ),
]
_IntentList = Annotated[list[_IntentItem], Field(min_length=1, max_length=MAX_INPUTS), Tag(LIST)]


class IntentRequest(Wire):
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
                    "labels": "banking77",
                    "top_k": 3,
                    "threshold": None,
                }
            ]
        }
    )

    inputs: Annotated[
        _Text | _IntentObject | _IntentList,
        Discriminator(
            _intents_branch,
            custom_error_type="input_type",
            custom_error_message="Input should be a string, an object with a text or turns, or a list of either",
        ),
    ]
    labels: Annotated[
        str | None, Field(max_length=MAX_NAME_CHARS, description="which intents; HEED_LABELS if not given")
    ] = None
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="intents in the ranking")] = 3
    threshold: Annotated[
        float | None, Field(ge=0, le=1, description="out of scope above this score; that of the intents if not given")
    ] = None
    truncate: Annotated[bool, Field(description="shorten over-long texts and say so; false refuses them")] = True


class RankedIntent(Wire):
    intent: str
    confidence: float


class IntentResult(Wire):
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


class RepliesRequest(Wire):
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
    candidates: Annotated[list[_Reply] | None, Field(min_length=1, max_length=MAX_CANDIDATES)] = None
    reply_set: Annotated[str | None, Field(max_length=MAX_NAME_CHARS, description="name of a registered set")] = None
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="replies to return")] = 5
    threshold: Annotated[
        float | None, Field(ge=0, le=1, description="no good reply under this score; the model's own if not given")
    ] = None

    @model_validator(mode="after")
    def _one_of_both(self) -> RepliesRequest:
        if (self.candidates is None) == (self.reply_set is None):
            raise PydanticCustomError("input_type", "Input should have either candidates or a reply_set")
        if all(turn.speaker != "customer" for turn in self.turns):
            raise PydanticCustomError("no_customer", "Input should have a turn of the customer")
        places: dict[str, int] = {}
        for number, text in enumerate(self.candidates or ()):
            if (first := places.setdefault(text, number)) != number:
                raise PydanticCustomError(
                    "duplicate", "Candidates {first} and {second} are the same", {"first": first, "second": number}
                )
        return self


class RankedReply(Wire):
    index: Annotated[int, Field(ge=0, description="place among the candidates, or in the set")]
    text: str
    score: Annotated[float, Field(ge=0, le=1)]


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


class ExplainTimings(Wire):
    """Milliseconds: waiting for other explanations, and the work of this one."""

    queue: float
    explain: float


class ExplainResponse(Wire):
    """Results are in the order of the inputs; one that failed carries an error, its neighbours are unharmed."""

    model: str
    version: str
    results: list[ExplainResult | FailedItem]
    timings_ms: ExplainTimings


class IntentResponse(Wire):
    """Results are in the order of the inputs; one that failed carries an error, its neighbours are unharmed."""

    model: str
    version: str
    results: list[IntentResult | FailedItem]
    labels: Annotated[str, Field(description="the label set that was asked")]
    timings_ms: Timings


class RepliesResponse(Wire):
    """The best reply first."""

    model: str
    version: str
    results: list[RankedReply]
    no_good_reply: bool
    turns_used: int
    turns_dropped: int
    truncated: bool
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
