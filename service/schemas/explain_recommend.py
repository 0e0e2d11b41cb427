"""Schemas of `/v1/explain/recommend`, whose limits are those of explanations and of recommendations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from models.explain.methods import HistoryMethod
from service.schemas import explanation_examples as examples
from service.schemas.explain import ExplainTimings
from service.schemas.recommend import MAX_USERS, User
from service.schemas.wire import MAX_ID_CHARS, FailedItem, WireModel, one_or_many


class ExplainedUser(User):
    """A user as for `/v1/recommend`. `top_k` and `min_new_items` have no effect here."""

    target: Annotated[
        str | None,
        Field(
            min_length=1,
            max_length=MAX_ID_CHARS,
            description="item_id of the item to explain, whatever the filter; a candidate, if there are any. "
            "By default, the item that is ranked first",
        ),
    ] = None


class ExplainRecommendRequest(WireModel):
    """A user, or a list of at most 16 users. A user may come several times, with different targets."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EXPLAIN_RECOMMEND_REQUEST]})

    inputs: Annotated[
        ExplainedUser | list[ExplainedUser], one_or_many(ExplainedUser, "an object with a history", MAX_USERS)
    ]
    method: Annotated[
        Literal["auto", HistoryMethod],
        Field(
            description="attribution method; auto is the best one for its time in measurements. "
            "attention sums the weights whose largest are the `reasons` of a recommendation"
        ),
    ] = "auto"


class ExplainedItem(WireModel):
    """The item whose score is explained."""

    item_id: Annotated[str | None, Field(description="null for a candidate that is a text alone")]
    candidate_index: Annotated[int | None, Field(description="index among the candidates; null without candidates")]
    text: str
    score: Annotated[float, Field(ge=0, le=1, description="calibrated probability of the item in the next purchase")]


class HistoryItemWeight(WireModel):
    """The attribution of an item of the history, for all its events together."""

    history_indexes: Annotated[list[int], Field(min_length=1, description="indexes of its events in the history")]
    item_id: Annotated[str | None, Field(description="null for an event with a text alone")]
    text: str
    weight: Annotated[
        float,
        Field(
            description="effect on the score of the target, negative if it speaks against it. With attention, "
            "the item's share of what the history adds to the score, negative for a disliked item"
        ),
    ]


class ExplainRecommendResult(WireModel):
    """An item and the items of the history behind its score."""

    target: Annotated[ExplainedItem, Field(description="the item that is explained")]
    method: str
    history: Annotated[
        list[HistoryItemWeight], Field(description="the items that the model read, in the order of their first events")
    ]
    catalogue: str
    history_used: Annotated[int, Field(ge=0, description="number of events that the model read")]
    history_dropped: Annotated[int, Field(ge=0, description="number of oldest events that the model did not read")]
    history_skipped: Annotated[int, Field(ge=0, description="number of events with an unknown item")]
    truncated: Annotated[bool, Field(description="whether a text in the request was longer than the model reads")]
    id: str | None


class ExplainRecommendResponse(WireModel):
    """Results in the order of the inputs. An input that failed has an error, and does not affect the rest."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EXPLAIN_RECOMMEND_RESPONSE]})

    model: str
    version: str
    results: list[ExplainRecommendResult | FailedItem]
    timings_ms: ExplainTimings
