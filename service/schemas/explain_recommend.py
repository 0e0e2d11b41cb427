"""The wire of explained recommendations; their limits are those of `schemas_explain` and `schemas_recommend`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from models.explain.methods import HistoryMethod
from service.schemas.explain import ExplainTimings
from service.schemas.recommend import MAX_USERS, User
from service.schemas.wire import LIST, MAX_ID_CHARS, OBJECT, FailedItem, WireModel


class ExplainedUser(User):
    """A user as for `/v1/recommend`; `top_k` and `newcomers` do not matter here."""

    target: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=MAX_ID_CHARS,
            description="item_id of the item to explain, of a candidate where there are any, whatever the filter; "
            "the one that is ranked first if not given",
        ),
    ] = None


def _branch(value: Any) -> str | None:
    return LIST if isinstance(value, list) else OBJECT if isinstance(value, dict | ExplainedUser) else None


class ExplainRecommendRequest(WireModel):
    """One user, or a list of at most 16 of them; one user may come several times, with several targets."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": {
                        "history": [
                            {"item_id": "85123A", "event": "purchase", "at": "2011-11-03T10:00:00Z"},
                            {"text": "Regency cakestand 3 tier", "event": "view", "at": "2011-11-04T09:30:00Z"},
                        ],
                        "target": "22138",
                    },
                    "method": "auto",
                },
                {"inputs": [{"history": [{"item_id": "22423", "event": "purchase"}], "filter": {"price": {"lt": 5}}}]},
            ]
        }
    )

    inputs: Annotated[
        Annotated[ExplainedUser, Tag(OBJECT)]
        | Annotated[list[ExplainedUser], Field(min_length=1, max_length=MAX_USERS), Tag(LIST)],
        Discriminator(
            _branch,
            custom_error_type="input_type",
            custom_error_message="Input should be an object with a history, or a list of them",
        ),
    ]
    method: Annotated[
        Literal["auto", HistoryMethod],
        Field(
            description="how the items of the history are weighed; auto is the one measured to be best for its time, "
            "attention sums the weights of which `because` shows the largest"
        ),
    ] = "auto"


class ExplainedItem(WireModel):
    item_id: Annotated[str | None, Field(description="null of a candidate that came as a text alone")]
    candidate_index: Annotated[int | None, Field(description="place among the candidates; null without any")]
    text: str
    score: Annotated[float, Field(ge=0, le=1, description="calibrated: how likely it is to be in the next purchase")]


class HistoryItemWeight(WireModel):
    """All events of one item: they are weighed together."""

    history_indexes: Annotated[list[int], Field(min_length=1, description="places in the history as it was sent")]
    item_id: Annotated[str | None, Field(description="null of an event that came as a text alone")]
    text: str
    weight: Annotated[
        float,
        Field(
            description="positive speaks for the target, negative against it: points of its score; by attention the "
            "item's part of what the history adds to it, negative of what was disliked"
        ),
    ]


class ExplainRecommendResult(WireModel):
    target: Annotated[ExplainedItem, Field(description="the item that weights speak for or against")]
    method: str
    history: Annotated[
        list[HistoryItemWeight], Field(description="each item that was read, the one first done with first")
    ]
    catalogue: str
    history_used: Annotated[int, Field(ge=0, description="events that the model read")]
    history_dropped: Annotated[int, Field(ge=0, description="oldest events that were not read")]
    history_skipped: Annotated[int, Field(ge=0, description="events whose item is unknown")]
    truncated: Annotated[bool, Field(description="whether a text sent along was longer than the model reads")]
    id: str | None


class ExplainRecommendResponse(WireModel):
    """Results are in the order of the inputs; one that failed carries an error, its neighbours are unharmed."""

    model: str
    version: str
    results: list[ExplainRecommendResult | FailedItem]
    timings_ms: ExplainTimings
