"""The wire of `/v1/recommend`: users with their histories in, ranked items out, and every limit of both.

Events and candidates come by the thousand, so they are checked dictionaries and no objects, and candidates that are ids
alone are just these. What must fit together (a rating and its value, times and their order) is looked at further in,
and comes back as that user's `error`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any, Literal, NotRequired, overload

import msgspec
import orjson
from pydantic import ConfigDict, Discriminator, Field, GetPydanticSchema, Tag, WrapValidator, with_config
from typing_extensions import TypedDict

from service.schemas.wire import (
    LIST,
    MAX_ID_CHARS,
    MAX_NAME_CHARS,
    MAX_TEXT_CHARS,
    MAX_TOP_K,
    OBJECT,
    FailedItem,
    Timings,
    WireModel,
)

MAX_USERS = 64
MAX_EVENTS = 10_000
MAX_RANKED_CANDIDATES = 10_000
MAX_EVENT_CHARS = 64
MAX_RATING = 5.0
TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})$"

_CHECKED = ConfigDict(extra="forbid", strict=True)

_ItemId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS, description="of the catalogue, or of your own")]
_ItemText = Annotated[
    str,
    Field(max_length=MAX_TEXT_CHARS, description="read where the catalogue has no item of this id, English or Chinese"),
]


@with_config(_CHECKED)
class Candidate(TypedDict):
    """An item_id, a text, or both."""

    item_id: NotRequired[_ItemId]
    text: NotRequired[_ItemText]


@with_config(_CHECKED)
class HistoryEvent(TypedDict):
    """What a user did with an item: an item_id, a text, or both."""

    item_id: NotRequired[_ItemId]
    text: NotRequired[_ItemText]
    event: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_EVENT_CHARS,
            description="view, click, cart, purchase, like, dislike or rating; any other name counts as some interest",
        ),
    ]
    value: NotRequired[
        Annotated[
            float,
            Field(
                ge=0,
                le=MAX_RATING,
                allow_inf_nan=False,
                description="of a rating, which needs it: up to 5, and a dislike below 3",
            ),
        ]
    ]
    at: NotRequired[
        Annotated[
            str,
            Field(
                pattern=TIME,
                description="RFC 3339; given for all events or for none, which then are taken oldest first",
                json_schema_extra={"format": "date-time"},
            ),
        ]
    ]


class CandidateIds(Sequence[Candidate]):
    """Candidates that have an id and nothing else."""

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> Candidate: ...
    @overload
    def __getitem__(self, place: slice) -> CandidateIds: ...
    def __getitem__(self, place: int | slice) -> Candidate | CandidateIds:
        return CandidateIds(self.ids[place]) if isinstance(place, slice) else {"item_id": self.ids[place]}


def _candidates(given: Any, check: Callable[[Any], Any]) -> Any:
    return given if isinstance(given, CandidateIds) else check(given)


class User(WireModel):
    history: Annotated[
        list[HistoryEvent], Field(max_length=MAX_EVENTS, description="the newest 256 are read; empty: what is popular")
    ]
    candidates: Annotated[
        Sequence[Candidate] | None,
        GetPydanticSchema(lambda _, schema_of: schema_of(list[Candidate] | None)),
        Field(min_length=1, max_length=MAX_RANKED_CANDIDATES, description="the whole catalogue if not given"),
        WrapValidator(_candidates),
    ] = None
    catalogue: Annotated[
        str | None,
        Field(max_length=MAX_NAME_CHARS, description="where ids are looked up; the model's own if not given"),
    ] = None
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="items to return")] = 10
    min_new_items: Annotated[
        int,
        Field(
            ge=0,
            le=MAX_TOP_K,
            description="of the items to return, at least so many, where there are such, that are new to the user and "
            "came to the catalogue after the model was trained",
        ),
    ] = 0
    exclude_history: Annotated[bool, Field(description="leave out every item of the history")] = False
    filter: Annotated[
        dict[str, Any] | None,
        Field(description='conditions on attributes, such as {"price": {"lt": 5}, "colour": "red"}; all must hold'),
    ] = None
    on_unknown: Annotated[
        Literal["error", "skip"],
        Field(description="of an id that the catalogue lacks and that comes without a text"),
    ] = "error"
    id: Annotated[str | None, Field(max_length=MAX_ID_CHARS, description="comes back with the result")] = None


def _branch(value: Any) -> str | None:
    return LIST if isinstance(value, list) else OBJECT if isinstance(value, dict | User) else None


class RecommendRequest(WireModel):
    """One user, or a list of them. Of a key that is given twice the last value counts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        {
                            "id": "u-17",
                            "history": [
                                {"item_id": "85123A", "event": "purchase", "at": "2011-11-03T10:00:00Z"},
                                {"text": "Regency cakestand 3 tier", "event": "view", "at": "2011-11-04T09:30:00Z"},
                            ],
                            "candidates": [{"item_id": "22138"}, {"text": "Baking set 9 piece retrospot"}],
                            "top_k": 2,
                        },
                        {"history": [{"item_id": "22423", "event": "purchase"}], "filter": {"price": {"lt": 5}}},
                    ],
                }
            ]
        }
    )

    inputs: Annotated[
        Annotated[User, Tag(OBJECT)] | Annotated[list[User], Field(min_length=1, max_length=MAX_USERS), Tag(LIST)],
        Discriminator(
            _branch,
            custom_error_type="input_type",
            custom_error_message="Input should be an object with a history, or a list of them",
        ),
    ]


class _Named(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    item_id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_CHARS)]


_NAMED = Annotated[list[_Named], msgspec.Meta(min_length=1, max_length=MAX_RANKED_CANDIDATES)]
_PLAIN_USER = msgspec.defstruct(
    "_PlainUser",
    [(name, _NAMED | None if name == "candidates" else Any, msgspec.UNSET) for name in User.model_fields],
    forbid_unknown_fields=True,
)
_PLAIN = msgspec.json.Decoder(
    msgspec.defstruct("_Plain", [("inputs", _PLAIN_USER | list[_PLAIN_USER])], forbid_unknown_fields=True)  # type: ignore[valid-type]
)


def fast_parser(body: bytes) -> RecommendRequest:
    """Raises ValueError, without a word that would help a caller, for a body that is no such request.

    Of candidates that are ids alone no object is kept, and no dictionary made; other small objects are checked by the
    thousand faster once they are Python's own.
    """
    with suppress(ValueError, RecursionError):
        plain: Any = _PLAIN.decode(body)
        many = isinstance(plain.inputs, list)
        users = [_user(one) for one in (plain.inputs if many else [plain.inputs])]
        return RecommendRequest.model_validate({"inputs": users if many else users[0]})
    return RecommendRequest.model_validate(orjson.loads(body))


def _user(plain: Any) -> dict[str, Any]:
    given = {name: value for name, value in msgspec.structs.asdict(plain).items() if value is not msgspec.UNSET}
    if given.get("candidates"):
        given["candidates"] = CandidateIds([one.item_id for one in given["candidates"]])
    return given


class Reason(WireModel):
    history_index: Annotated[int, Field(ge=0, description="place in the history as it was sent")]
    weight: Annotated[
        float, Field(ge=0, le=1, description="what this event adds to the score, as a part of what all of them add")
    ]


class RecommendedItem(WireModel):
    rank: Annotated[int, Field(ge=1)]
    item_id: Annotated[str | None, Field(description="null of a candidate that came as a text alone")]
    candidate_index: Annotated[int | None, Field(description="place among the candidates; null without any")]
    text: str
    score: Annotated[float, Field(ge=0, le=1, description="calibrated: how likely it is to be in the next purchase")]
    reasons: Annotated[list[Reason], Field(max_length=3, description="the events it leans on most, the first the most")]


class RecommendResult(WireModel):
    items: Annotated[list[RecommendedItem], Field(description="the best first")]
    catalogue: str
    cold_start: Annotated[
        bool, Field(description="no history, so that items are by popularity, and scores are shares of all purchases")
    ]
    history_used: Annotated[int, Field(ge=0, description="events that the model read")]
    history_dropped: Annotated[int, Field(ge=0, description="oldest events that were not read")]
    history_skipped: Annotated[int, Field(ge=0, description="events whose item is unknown")]
    candidates_skipped: Annotated[int, Field(ge=0, description="candidates that are unknown")]
    candidates_repeated: Annotated[int, Field(ge=0, description="candidates that were there before, ranked once")]
    truncated: Annotated[bool, Field(description="whether a text sent along was longer than the model reads")]
    id: str | None


class RecommendResponse(WireModel):
    """Results are in the order of the inputs; one that failed carries an error, its neighbours are unharmed."""

    model: str
    version: str
    results: list[RecommendResult | FailedItem]
    timings_ms: Timings
