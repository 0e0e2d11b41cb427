"""Requests for explanations of sentiment that the service refuses."""

from __future__ import annotations

from typing import Any

import pytest

from models.explain import attention_maps as maps
from models.graph import weights as stored
from service.schemas.explain import MAX_EXPLAINED, MAX_MAP_NUMBERS
from tests.support.explain_sentiment_app import PATH, Explains, shown
from tests.support.service_app import JSON, Service, assert_problem
from tests.support.tiny_bundle import HEADS, LAYERS

pytestmark = pytest.mark.anyio


async def test_a_request_without_a_usable_text_is_refused(explains: Explains) -> None:
    assert_problem(await explains.ask([" "]), 422, "empty_text", "/inputs/0")
    assert_problem(await explains.ask({"text": "", "id": "x"}), 422, "empty_text", "/inputs/text")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "pointer"),
    [
        ({"method": "rollout"}, "/method"),
        ({"method": 3}, "/method"),
        ({"target": "great"}, "/target"),
        ({"method": "attention"}, ""),
        ({"layers": [0]}, ""),
        ({"heads": "all"}, ""),
        ({"method": "attention", "layers": []}, "/layers"),
        ({"method": "attention", "layers": [-1]}, "/layers/0"),
        ({"method": "attention", "layers": [0, LAYERS]}, "/layers/1"),
        ({"method": "attention", "layers": [10**30]}, "/layers/0"),
        ({"method": "attention", "layers": [0.5]}, "/layers/0"),
        ({"method": "attention", "layers": "all"}, "/layers"),
        ({"method": "attention", "layers": [0], "heads": [HEADS]}, "/heads/0"),
        ({"method": "attention", "layers": [0], "heads": "some"}, "/heads"),
        ({"method": "attention", "layers": [0], "heads": 1}, "/heads"),
        ({"method": "attention", "layers": [0], "heads": []}, "/heads"),
        ({"reduce": "mean"}, ""),
        ({"method": "attention", "reduce": "mean"}, ""),
        ({"method": "attention", "reduce": "rollout", "layers": [0]}, ""),
        ({"method": "attention", "reduce": "rollout", "heads": "all"}, ""),
        ({"method": "attention", "reduce": "sum", "layers": [0]}, "/reduce"),
        ({"truncate": True}, "/truncate"),
        ({"inputs": []}, "/inputs"),
        ({"inputs": 3}, "/inputs"),
        ({"inputs": [{"text": "a", "entity": 3}]}, "/inputs/0/entity"),
    ],
)
async def test_bad_input_has_a_pointer(explains: Explains, more: dict[str, Any], pointer: str) -> None:
    assert_problem(await explains.client.post(PATH, json={"inputs": "ab", **more}), 422, "invalid_request", pointer)


async def test_a_graph_without_attention_nodes_is_explained_by_the_remaining_methods(
    explains: Explains, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "find_attention_nodes", lambda graph: iter(()))
    monkeypatch.setattr(stored, "find_attributes", lambda graph, operator, name: iter(()))
    for more in ({"method": "attention", "layers": [0]}, {"method": "value_norm"}, {"method": "integrated_gradients"}):
        assert_problem(await explains.ask("ab", **more), 422, "invalid_request", "/method")
    shown(await explains.ask("ab"))


async def test_malformed_bodies_are_refused(explains: Explains) -> None:
    for content, status, code in ((b"{", 400, "malformed_json"), (b"\xff", 400, "malformed_body")):
        assert_problem(await explains.client.post(PATH, content=content, headers=JSON), status, code)


@pytest.mark.parametrize(
    ("inputs", "more", "limit"),
    [
        (["a"] * (MAX_EXPLAINED + 1), {}, "at most 16"),
        (["a"] * 5, {"layers": [0]}, "at most 4"),
        ("a" * 300, {"layers": [0]}, f"over {MAX_MAP_NUMBERS} numbers"),
        (["a" * 200] * 4, {"layers": [0], "heads": [0, 1]}, "fewer"),
    ],
)
async def test_too_large_a_request_is_refused_with_the_limit(
    explains: Explains, inputs: Any, more: dict[str, Any], limit: str
) -> None:
    answer = await explains.ask(inputs, method="attention" if more else "auto", **more)
    assert_problem(answer, 413, "explanation_too_large", "/inputs")
    assert limit in answer.json()["detail"]


async def test_a_remote_model_has_no_explanations(service: Service) -> None:
    answer = await service.client.post(PATH, json={"inputs": "good"})
    assert_problem(answer, 404, "not_found")
    assert "no explanations" in answer.json()["detail"]
