"""Wrong documents: which item is wrong, where, and what the caller is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from service.errors import Problem
from service.http.validation import InvalidItem, parse
from service.schemas.catalogue import CatalogueEdit
from service.schemas.explain_recommend import ExplainRecommendRequest
from service.schemas.intent import IntentRequest, RepliesRequest
from service.schemas.recommend import RecommendRequest
from service.schemas.sentiment import SentimentItem, SentimentRequest

HISTORY: list[Any] = []
AGENT = {"speaker": "agent", "text": "hello"}


def encoded(document: Any) -> bytes:
    return document if isinstance(document, bytes) else json.dumps(document).encode()


def refusal(model: type[BaseModel], document: Any) -> Problem:
    with pytest.raises(Problem) as refused:
        parse(model, encoded(document))
    return refused.value


@pytest.mark.parametrize(
    ("model", "good", "bad", "pointer", "item_id"),
    [
        (SentimentRequest, "good", None, "", None),
        (SentimentRequest, "good", 3, "", None),
        (SentimentRequest, "good", ["nested"], "", None),
        (SentimentRequest, "good", "\ud800", "", None),
        (SentimentRequest, "good", {"text": "x\ud83d", "id": "a"}, "/text", "a"),
        (SentimentRequest, "good", {"text": "x", "id": 3}, "/id", None),
        (SentimentRequest, "good", {"text": "x", "id": "x" * 257}, "/id", None),
        (SentimentRequest, "good", {"text": "x", "id": "\ud800"}, "/id", None),
        (SentimentRequest, "good", {"id": "a"}, "/text", "a"),
        (SentimentRequest, "good", {"text": "x", "(object)": 1}, "/(object)", None),
        (IntentRequest, "good", {"turns": [AGENT], "id": "a"}, "", "a"),
        (IntentRequest, "good", {"turns": [{"speaker": "agent", "text": " "}]}, "/turns/0/text", None),
        (IntentRequest, "good", {"turns": [{"speaker": "robot", "text": "x"}]}, "/turns/0/speaker", None),
        (IntentRequest, "good", {"text": "x", "turns": [AGENT]}, "", None),
        (RecommendRequest, {"history": []}, None, "", None),
        (
            RecommendRequest,
            {"history": []},
            {"history": [{"item_id": "a", "event": "rating", "value": 6}], "id": "u"},
            "/history/0/value",
            "u",
        ),
        (
            RecommendRequest,
            {"history": []},
            {"history": [{"item_id": "a", "event": "view", "at": "2011-11-03T10:00:00"}]},
            "/history/0/at",
            None,
        ),
        (RecommendRequest, {"history": []}, {"history": [], "filter": {"a": "\ud800"}}, "", None),
    ],
)
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_wrong_item_takes_its_place_with_a_pointer_from_the_item_on(
    model: type[BaseModel], good: Any, bad: Any, pointer: str, item_id: str | None, position: int
) -> None:
    items = [good, good]
    items.insert(position, bad)
    (inputs,) = [parse(model, encoded({"inputs": items})).inputs]  # type: ignore[attr-defined]
    assert [isinstance(item, InvalidItem) for item in inputs] == [index == position for index in range(3)]
    invalid = inputs[position]
    assert (invalid.problem.status, invalid.problem.code) == (422, "invalid_request")
    assert (invalid.problem.pointer, invalid.id) == (pointer, item_id)


def test_valid_items_are_those_of_the_model() -> None:
    inputs = parse(SentimentRequest, b'{"inputs": [{"text": "a", "id": "x"}, null, "b"]}').inputs
    assert isinstance(inputs, list)
    assert inputs[0] == SentimentItem(text="a", id="x")
    assert inputs[2] == "b"


@pytest.mark.parametrize(
    ("document", "pointer"),
    [
        ({"inputs": [None, 3]}, "/inputs/0"),
        ({"inputs": [{"text": 3}, None]}, "/inputs/0/text"),
        ({"inputs": ["a", None], "truncate": 1}, "/truncate"),
        ({"inputs": ["a", None], "unknown": 1}, "/unknown"),
        ({"inputs": ["a"] * 256 + [None]}, "/inputs"),
        ({"inputs": [None] * 300}, "/inputs"),
        (b'{"inputs": ["\\ud800"]}', "/inputs/0"),
        (b'{"inputs": ["a", "\\ud800"], "truncate": "\\ud800"}', "/truncate"),
    ],
)
def test_the_envelope_and_a_list_without_a_valid_item_are_refused(document: Any, pointer: str) -> None:
    assert (refusal(SentimentRequest, document).code, refusal(SentimentRequest, document).pointer) == (
        "invalid_request",
        pointer,
    )


def test_an_item_with_thousands_of_faults_affects_no_other_and_they_are_counted() -> None:
    many = {"text": "a"} | {f"k{index}": 1 for index in range(3_000)}
    inputs = parse(SentimentRequest, encoded({"inputs": ["a", many, None]})).inputs
    assert isinstance(inputs, list)
    assert inputs[0] == "a"
    assert isinstance(inputs[1], InvalidItem)
    assert inputs[1].problem.detail == "3000 values are wrong or unknown."


@pytest.mark.parametrize(
    ("attributes", "pointer", "words"),
    [
        ({"tags": ["a"]}, "/items/0/attributes/tags", "a string of at most"),
        ({"tags": {"a": 1}}, "/items/0/attributes/tags", "or a number"),
        ({"": 1}, "/items/0/attributes/", "at least 1 character"),
        ({"a": 2**60}, "/items/0/attributes/a", "as a string"),
        ([], "/items/0/attributes", "an object"),
    ],
)
def test_a_pointer_has_no_names_of_branches_and_checks(attributes: Any, pointer: str, words: str) -> None:
    problem = refusal(CatalogueEdit, {"items": [{"item_id": "a", "text": "b", "attributes": attributes}]})
    assert problem.pointer == pointer
    assert words in problem.detail


@pytest.mark.parametrize(
    ("model", "document", "meant"),
    [
        (SentimentRequest, {"inputs": "a", "truncat": True}, "truncate"),
        (SentimentRequest, {"input": "a", "inputs": "b"}, "inputs"),
        (SentimentRequest, {"inputs": {"text": "a", "entitiy": "b"}}, "entity"),
        (SentimentRequest, {"inputs": [{"text": "a", "entitiy": "b"}]}, "entity"),
        (IntentRequest, {"inputs": {"turns": [{**AGENT, "txt": "b"}]}}, "text"),
        (RecommendRequest, {"inputs": {"history": [], "topk": 3}}, "top_k"),
        (RecommendRequest, {"inputs": {"history": [{"event": "view", "itemid": "b"}]}}, "item_id"),
        (CatalogueEdit, {"items": [{"item_id": "a", "text": "b", "popularty": 3}]}, "popularity"),
    ],
)
def test_an_unknown_field_names_the_nearest(model: type[BaseModel], document: Any, meant: str) -> None:
    assert refusal(model, document).detail == f"There is no such field; the nearest is {meant}."


@pytest.mark.parametrize(
    ("model", "document", "pointer", "detail"),
    [
        (SentimentRequest, {"input": "a"}, "/input", "the nearest is inputs"),
        (SentimentRequest, {"truncat": True, "input": "a"}, "/input", "the nearest is inputs"),
        (SentimentRequest, {"texts": ["a"]}, "/texts", "there are: inputs, truncate"),
        (SentimentRequest, {"inputs": {"txt": "a", "id": "b"}}, "/inputs/txt", "the nearest is text"),
        (
            IntentRequest,
            {"inputs": {"turns": [{"speeker": "agent", "text": "a"}]}},
            "/inputs/turns/0/speeker",
            "speaker",
        ),
        (RepliesRequest, {"turn": [], "candidates": ["a"]}, "/turn", "the nearest is turns"),
        (RecommendRequest, {"inputs": {"histroy": []}}, "/inputs/histroy", "the nearest is history"),
        (
            RecommendRequest,
            {"inputs": {"history": [{"evnt": "view"}]}},
            "/inputs/history/0/evnt",
            "the nearest is event",
        ),
        (CatalogueEdit, {"items": [{"id": "a", "text": "b"}]}, "/items/0/id", "there are: item_id, text"),
        (ExplainRecommendRequest, {"input": {}}, "/input", "the nearest is inputs"),
    ],
)
def test_an_unknown_field_in_place_of_a_missing_one_is_named(
    model: type[BaseModel], document: Any, pointer: str, detail: str
) -> None:
    problem = refusal(model, document)
    assert problem.pointer == pointer
    assert detail in problem.detail


def test_an_unknown_field_elsewhere_does_not_hide_a_missing_one() -> None:
    problem = refusal(SentimentRequest, {"inputs": {"entity": "a"}, "truncat": True})
    assert (problem.detail, problem.pointer) == ("Field required.", "/inputs/text")


def test_a_field_unlike_all_others_names_those_there_are() -> None:
    detail = refusal(SentimentRequest, {"inputs": {"text": "a", "wxyz": 1}}).detail
    assert detail == "There is no such field; there are: text, entity, id."


def test_a_time_is_asked_for_in_words() -> None:
    event = {"item_id": "a", "event": "view", "at": "yesterday"}
    assert "RFC 3339 with a zone" in refusal(RecommendRequest, {"inputs": {"history": [event]}}).detail
