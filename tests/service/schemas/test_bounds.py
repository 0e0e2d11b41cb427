"""Numbers and names of requests: each refusal has one pointer, and names the range."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from models.catalogue.errors import EditError
from models.catalogue.items import Item
from service.errors import InvalidRequest
from service.http.validation import parse
from service.schemas.catalogue import CatalogueEdit
from service.schemas.explain import ExplainIntentRequest, ExplainRepliesRequest
from service.schemas.explain_recommend import ExplainRecommendRequest
from service.schemas.intent import IntentRequest, RepliesRequest
from service.schemas.recommend import RecommendRequest, fast_parser

TURNS = {"turns": [{"speaker": "customer", "text": "a"}]}
EVENT = {"text": "a", "event": "rating"}


def refusal(model: type[BaseModel], document: dict[str, Any]) -> tuple[str | None, str]:
    with pytest.raises(InvalidRequest) as refused:
        parse(model, json.dumps(document).encode())
    return refused.value.pointer, refused.value.detail


@pytest.mark.parametrize("value", [-0.1, 1.1, 1e308, 10**400, "0.5", True])
@pytest.mark.parametrize(
    ("model", "document"),
    [(IntentRequest, {"inputs": "a"}), (RepliesRequest, TURNS | {"reply_set": "b"})],
    ids=["intent", "replies"],
)
def test_a_threshold_is_from_0_to_1(model: type[BaseModel], document: dict[str, Any], value: Any) -> None:
    assert refusal(model, document | {"threshold": value}) == (
        "/threshold",
        "Input should be a number from 0 to 1.",
    )
    parse(model, json.dumps(document | {"threshold": None}).encode())


@pytest.mark.parametrize("value", [-1, 5.01, 1e308, "5", False])
def test_a_rating_is_from_0_to_5(value: Any) -> None:
    document = {"inputs": {"history": [EVENT | {"value": value}]}}
    assert refusal(RecommendRequest, document) == (
        "/inputs/history/0/value",
        "Input should be a number from 0 to 5.",
    )
    with pytest.raises(ValueError, match="from 0 to 5"):
        fast_parser(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("model", "document", "pointer"),
    [
        (IntentRequest, {"inputs": "a", "label_set": ""}, "/label_set"),
        (ExplainIntentRequest, {"inputs": "a", "label_set": ""}, "/label_set"),
        (ExplainIntentRequest, {"inputs": "a", "target": ""}, "/target"),
        (RepliesRequest, TURNS | {"reply_set": ""}, "/reply_set"),
        (ExplainRepliesRequest, TURNS | {"reply_set": ""}, "/reply_set"),
        (RecommendRequest, {"inputs": {"history": [], "catalogue": ""}}, "/inputs/catalogue"),
        (ExplainRecommendRequest, {"inputs": {"history": [], "catalogue": ""}}, "/inputs/catalogue"),
        (ExplainRecommendRequest, {"inputs": {"history": [], "target": ""}}, "/inputs/target"),
        (RecommendRequest, {"inputs": {"history": [{"item_id": "", "event": "view"}]}}, "/inputs/history/0/item_id"),
        (RecommendRequest, {"inputs": {"history": [{"text": "a", "event": ""}]}}, "/inputs/history/0/event"),
        (CatalogueEdit, {"remove": [""]}, "/remove/0"),
        (CatalogueEdit, {"items": [{"item_id": "", "text": "a"}]}, "/items/0/item_id"),
    ],
)
def test_an_empty_name_is_refused(model: type[BaseModel], document: dict[str, Any], pointer: str) -> None:
    assert refusal(model, document) == (pointer, "String should have at least 1 character.")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e17, -1e308, 10**400])
def test_an_item_with_a_number_outside_its_range_is_not_stored(number: float) -> None:
    with pytest.raises(EditError, match=r"attributes should be from -2\*\*53 to 2\*\*53"):
        Item("1", "a", {"price": number}).content()
    with pytest.raises(EditError, match=r"popularity should be a number from 0 to 2\*\*53"):
        Item("1", "a", popularity=abs(number)).content()
