from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from models.tasks import SENTIMENT
from service.schemas import sentiment as sentiment_schemas
from service.schemas.sentiment import SentimentItem, SentimentRequest


def read(document: Any) -> SentimentRequest:
    return SentimentRequest.model_validate_json(json.dumps(document))


def faults(document: Any) -> list[tuple[tuple[int | str, ...], str]]:
    with pytest.raises(ValidationError) as refused:
        read(document)
    return [(error["loc"], error["msg"]) for error in refused.value.errors()]


@pytest.mark.parametrize(
    "inputs",
    [
        "text",
        {"text": "a", "entity": "b", "id": "c"},
        ["a"],
        ["a", {"text": "b"}],
        ["a"] * 256,
        "好 👩‍👩‍👧 \u0000 \u202e",
    ],
    ids=["text", "object", "list", "mixed", "256", "odd characters"],
)
def test_inputs_are_a_text_an_object_or_a_list_of_either(inputs: Any) -> None:
    assert read({"inputs": inputs}).truncate is True


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"inputs": 3},
        {"inputs": None},
        {"inputs": []},
        {"inputs": ["a"] * 257},
        {"inputs": [["a"]]},
        {"inputs": [None]},
        {"inputs": {"text": 3}},
        {"inputs": {}},
        {"inputs": {"text": "a", "entity": 3}},
        {"inputs": {"text": "a", "id": 3}},
        {"inputs": {"text": "a", "id": "i" * 257}},
        {"inputs": {"text": "a", "entity": "e" * 1001}},
        {"inputs": {"text": "a", "label": "x"}},
        {"inputs": "a" * 2_000_001},
        {"inputs": "a", "truncate": "true"},
        {"inputs": "a", "truncate": 1},
        {"inputs": "a", "truncate": None},
        {"inputs": "a", "parameters": {}},
    ],
    ids=lambda document: json.dumps(document)[:40],
)
def test_a_wrong_shape_is_a_single_fault(document: Any) -> None:
    assert len(faults(document)) == 1


def test_the_message_for_a_wrong_input_says_what_is_expected() -> None:
    assert faults({"inputs": [3]})[0][1] == "Input should be a string or an object with a text"
    assert faults({"inputs": 3})[0][1] == "Input should be a string, an object with a text, or a list of either"


def test_a_megabyte_of_text_is_within_the_limits() -> None:
    assert isinstance(read({"inputs": {"text": "a" * 2**20}}).inputs, SentimentItem)


def test_labels_of_the_schema_are_those_of_the_task() -> None:
    assert get_args(sentiment_schemas.Label) == SENTIMENT.labels


def test_the_schema_states_every_limit() -> None:
    schema = SentimentRequest.model_json_schema()
    text, item, many = schema["properties"]["inputs"]["oneOf"]
    assert text["maxLength"] == 2_000_000
    assert (many["minItems"], many["maxItems"]) == (1, 256)
    fields = schema["$defs"][item["$ref"].rsplit("/", 1)[1]]["properties"]
    assert [fields[name]["anyOf"][0]["maxLength"] for name in ("entity", "id")] == [1000, 256]
