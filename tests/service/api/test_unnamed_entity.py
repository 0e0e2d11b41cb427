"""An entity that the text does not name gets no guess: `found` is false, and the model does not run for it."""

from __future__ import annotations

import pytest

from tests.support.service_app import Service

pytestmark = pytest.mark.anyio

UNNAMED = {"text": "good news of Acme", "entity": "Birch", "id": "n-1"}


async def test_an_unnamed_entity_gets_no_label(service: Service) -> None:
    (result,) = (await service.ask([UNNAMED])).json()["results"]
    assert result == {
        "label": None,
        "scores": None,
        "polarity": None,
        "found": False,
        "tokens": 0,
        "truncated": False,
        "language": "en",
        "id": "n-1",
    }


async def test_the_model_runs_for_the_rest_alone(service: Service) -> None:
    before = len(service.runtime.batches)
    response = await service.ask([UNNAMED])
    assert (response.status_code, len(service.runtime.batches)) == (200, before)
    response = await service.ask(["bad", UNNAMED, {"text": "good Acme", "entity": "Acme"}])
    results = response.json()["results"]
    assert [(result["label"], result.get("found")) for result in results] == [
        ("negative", None),
        (None, False),
        ("positive", True),
    ]
    assert "found" not in results[0]
    assert sum(len(batch.ids) for batch in service.runtime.batches[before:]) == 2


@pytest.mark.parametrize(
    ("text", "entity", "is_named"),
    [
        ("good day at COCA-COLA", "Coca Cola", True),
        ("good for $ACME", "acme", True),
        ("good 騰訊漲", "腾讯", True),
        ("good Acmeville", "Acme", False),
        ("good " * 600 + "Acme", "Acme", True),
    ],
)
async def test_spelling_decides(service: Service, text: str, entity: str, is_named: bool) -> None:
    (result,) = (await service.ask([{"text": text, "entity": entity}])).json()["results"]
    assert (result["found"], result["label"] is not None) == (is_named, is_named)


async def test_a_cached_answer_is_the_same(service: Service) -> None:
    first, second = [(await service.ask([UNNAMED])).json()["results"] for _ in range(2)]
    assert first == second


async def test_a_long_text_is_refused_before_the_entity(service: Service) -> None:
    inputs = [{"text": "good " * 2000, "entity": "Birch"}, "good"]
    refused, _ = (await service.ask(inputs, truncate=False)).json()["results"]
    assert refused["error"]["code"] == "text_too_long"
    shortened, _ = (await service.ask(inputs)).json()["results"]
    assert (shortened["found"], shortened["truncated"]) == (False, True)
