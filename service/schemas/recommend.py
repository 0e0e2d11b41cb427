"""Schemas of `/v1/recommend`: users with histories, ranked items, and their limits.

A request has thousands of events and candidates, so they are validated dictionaries and no objects. Candidates with
ids alone stay a list of strings. Rules between values, such as a rating and its value, hold per user.
A user who breaks them gets an `error`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, NotRequired, overload

import msgspec
import orjson
from pydantic import ConfigDict, Field, GetCoreSchemaHandler, GetPydanticSchema, WrapValidator, with_config
from pydantic_core import CoreSchema
from pydantic_core.core_schema import custom_error_schema, str_schema
from typing_extensions import TypedDict

from service.schemas import examples
from service.schemas.wire import (
    MAX_ID_CHARS,
    MAX_TEXT_CHARS,
    MAX_TOP_K,
    FailedItem,
    Name,
    Timings,
    WireModel,
    number_message,
    one_or_many,
)

MAX_USERS = 64
MAX_EVENTS = 10_000
MAX_RANKED_CANDIDATES = 10_000
MAX_EVENT_CHARS = 64
MAX_RATING = 5.0
TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})$"

_CHECKED = ConfigDict(extra="forbid", strict=True)

_ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS, description="id, in the catalogue or not")]
_ItemText = Annotated[
    str,
    Field(max_length=MAX_TEXT_CHARS, description="English or Chinese text, read if the catalogue does not have the id"),
]


def _say_what_time(source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
    """Return the schema of a time, which says in words what pydantic says with a pattern."""
    message = "Input should be a time by RFC 3339 with a zone, such as 2011-11-03T10:00:00Z"
    return custom_error_schema(str_schema(pattern=TIME), "time", custom_error_message=message)


@with_config(_CHECKED)
class Candidate(TypedDict):
    """An item_id, a text, or both."""

    item_id: NotRequired[_ItemId]
    text: NotRequired[_ItemText]


@with_config(_CHECKED)
class HistoryEvent(TypedDict):
    """An action of a user on an item, which has an item_id, a text, or both."""

    item_id: NotRequired[_ItemId]
    text: NotRequired[_ItemText]
    event: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_EVENT_CHARS,
            description="view, click, cart, purchase, like, dislike or rating; another name counts as some interest",
        ),
    ]
    value: NotRequired[
        Annotated[
            float,
            Field(
                ge=0,
                le=MAX_RATING,
                allow_inf_nan=False,
                description="value of a rating, required there and not allowed elsewhere; below 3 it is a dislike",
            ),
            number_message(0, MAX_RATING),
        ]
    ]
    at: NotRequired[
        Annotated[
            str,
            GetPydanticSchema(_say_what_time),
            Field(
                description="time by RFC 3339, on all events or on none; events without times are oldest first",
                json_schema_extra={"format": "date-time"},
            ),
        ]
    ]


class CandidateIds(Sequence[Candidate]):
    """Candidates that have only an id."""

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> CandidateIds: ...
    def __getitem__(self, index: int | slice) -> Candidate | CandidateIds:
        return CandidateIds(self.ids[index]) if isinstance(index, slice) else {"item_id": self.ids[index]}


def _validate_candidates(value: Any, validate: Callable[[Any], Any]) -> Any:
    """Accept `CandidateIds` as they are, because `fast_parser` has validated them."""
    return value if isinstance(value, CandidateIds) else validate(value)


class User(WireModel):
    """A user's history, and the items to rank."""

    history: Annotated[
        list[HistoryEvent],
        Field(
            max_length=MAX_EVENTS,
            description="the model reads the newest 256 events; without events, popular items come first",
        ),
    ]
    candidates: Annotated[
        Sequence[Candidate] | None,
        GetPydanticSchema(lambda _, handler: handler(list[Candidate] | None)),
        Field(
            min_length=1, max_length=MAX_RANKED_CANDIDATES, description="items to rank; default: the whole catalogue"
        ),
        WrapValidator(_validate_candidates),
    ] = None
    catalogue: Annotated[
        Name | None,
        Field(description="name of the catalogue with the ids; the model's own by default"),
    ] = None
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="number of items to return")] = 10
    min_new_items: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_TOP_K,
            description="minimum number of cold items among the items to return, if there are as many. A cold item "
            "is new to the user and came to the catalogue after training",
        ),
    ] = 0
    exclude_history: Annotated[bool, Field(description="leave out the items of the history")] = False
    filter: Annotated[
        dict[str, Any] | None,
        Field(description='conditions on attributes, such as {"price": {"lt": 5}, "colour": "red"}; all must hold'),
    ] = None
    on_unknown: Annotated[
        Literal["error", "skip"],
        Field(description="for an id without a text that the catalogue does not have"),
    ] = "error"
    id: Annotated[str | None, Field(max_length=MAX_ID_CHARS, description="comes back with the result")] = None


class RecommendRequest(WireModel):
    """A user, or a list of users. If a key comes twice, its last value counts."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.RECOMMEND_REQUEST, examples.CANDIDATES_REQUEST]})

    inputs: Annotated[User | list[User], one_or_many(User, "an object with a history", MAX_USERS)]


class _IdCandidate(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    item_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_CHARS)]


_ID_CANDIDATES = Annotated[list[_IdCandidate], msgspec.Meta(min_length=1, max_length=MAX_RANKED_CANDIDATES)]
_PLAIN_USER = msgspec.defstruct(
    "_PlainUser",
    [(name, _ID_CANDIDATES | None if name == "candidates" else Any, msgspec.UNSET) for name in User.model_fields],
    forbid_unknown_fields=True,
)
_PLAIN = msgspec.json.Decoder(
    msgspec.defstruct("_Plain", [("inputs", _PLAIN_USER | list[_PLAIN_USER])], forbid_unknown_fields=True)  # type: ignore[valid-type]
)


def fast_parser(body: bytes) -> RecommendRequest:
    """Return the request; raise ValueError, with a message that helps no caller, for a wrong body.

    Candidates with ids alone become `CandidateIds`, without an object or a dictionary for each. For other small
    objects, pydantic validates Python objects faster than JSON.
    """
    with suppress(ValueError, RecursionError):
        plain: Any = _PLAIN.decode(body)
        is_list = isinstance(plain.inputs, list)
        users = [_user_fields(user) for user in (plain.inputs if is_list else [plain.inputs])]
        return RecommendRequest.model_validate({"inputs": users if is_list else users[0]})
    return RecommendRequest.model_validate(orjson.loads(body))


def _user_fields(plain: Any) -> dict[str, Any]:
    fields = {name: value for name, value in msgspec.structs.asdict(plain).items() if value is not msgspec.UNSET}
    if fields.get("candidates"):
        fields["candidates"] = CandidateIds([candidate.item_id for candidate in fields["candidates"]])
    return fields


class Reason(WireModel):
    """An event that a recommendation rests on."""

    history_index: Annotated[int, Field(ge=0, description="index in the history of the request")]
    weight: Annotated[
        float, Field(ge=0, le=1, description="the event's share of what the whole history adds to the score")
    ]


class RecommendedItem(WireModel):
    """A recommended item, with its score and reasons."""

    rank: Annotated[int, Field(ge=1)]
    item_id: Annotated[str | None, Field(description="null for a candidate that is a text alone")]
    candidate_index: Annotated[int | None, Field(description="index among the candidates; null without candidates")]
    text: str
    score: Annotated[float, Field(ge=0, le=1, description="calibrated probability of the item in the next purchase")]
    reasons: Annotated[list[Reason], Field(max_length=3, description="events behind the score, strongest first")]


class RecommendResult(WireModel):
    """The ranked items for a user."""

    items: Annotated[list[RecommendedItem], Field(description="best item first")]
    catalogue: str
    cold_start: Annotated[
        bool, Field(description="true without a history: popularity ranks items, and scores are shares of purchases")
    ]
    history_used: Annotated[int, Field(ge=0, description="number of events that the model read")]
    history_dropped: Annotated[int, Field(ge=0, description="number of oldest events that the model did not read")]
    history_skipped: Annotated[int, Field(ge=0, description="number of events with an unknown item")]
    candidates_skipped: Annotated[int, Field(ge=0, description="number of unknown candidates")]
    candidates_repeated: Annotated[int, Field(ge=0, description="number of repeated candidates, which are ranked once")]
    truncated: Annotated[bool, Field(description="whether a text in the request was longer than the model reads")]
    unsupported_language: Annotated[
        bool | None,
        Field(description="true if a text in the request is neither English nor Chinese; else absent"),
    ] = None
    id: str | None


class RecommendResponse(WireModel):
    """Results in the order of the inputs. An input that failed has an error, and does not affect the rest."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.RECOMMEND_RESPONSE]})

    model: str
    version: str
    results: list[RecommendResult | FailedItem]
    timings_ms: Timings
