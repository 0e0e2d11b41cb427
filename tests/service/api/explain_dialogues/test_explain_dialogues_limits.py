"""Requests for explanations of intents and replies that the service refuses."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from models.bundle import Bundle
from service.registry.heads import HeadRegistry
from service.schemas.explain import MAX_COMPARED, MAX_EXPLAINED
from service.telemetry.metrics import Metrics
from tests.support.explain_dialogues_app import CANDIDATES, DIALOGUE, INTENT, REPLIES, Explains, app_of, results
from tests.support.service_app import JSON, assert_problem
from tests.support.tiny_bundle import LAYERS

pytestmark = pytest.mark.anyio


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "more", "pointer"),
    [
        (INTENT, {"target": "nope"}, "/target"),
        (INTENT, {"target": 3}, "/target"),
        (INTENT, {"method": "rollout"}, "/method"),
        (INTENT, {"method": "attention", "layers": [LAYERS]}, "/layers/0"),
        (INTENT, {"inputs": []}, "/inputs"),
        (INTENT, {"inputs": {"turns": [DIALOGUE[1]]}}, "/inputs"),
        (INTENT, {"top_k": 3}, "/top_k"),
        (REPLIES, {"target": 3}, "/target"),
        (REPLIES, {"target": -1}, "/target"),
        (REPLIES, {"target": "aaaa"}, "/target"),
        (REPLIES, {"reply_set": "support"}, ""),
        (REPLIES, {"candidates": ["a", "a"]}, ""),
        (REPLIES, {"candidates": []}, "/candidates"),
        (REPLIES, {"turns": [DIALOGUE[1]]}, ""),
        (REPLIES, {"method": "attention", "layers": [0], "heads": [9]}, "/heads/0"),
    ],
)
async def test_bad_input_has_a_pointer(explains: Explains, path: str, more: dict[str, Any], pointer: str) -> None:
    body = {"inputs": "ab"} if path == INTENT else {"turns": DIALOGUE, "candidates": CANDIDATES}
    assert_problem(await explains.client.post(path, json=body | more), 422, "invalid_request", pointer)


@pytest.mark.slow
async def test_unknown_names_have_a_pointer(explains: Explains) -> None:
    assert_problem(await explains.intent("ab", label_set="nope"), 404, "not_found", "/label_set")
    assert_problem(await explains.reply(reply_set="nope"), 404, "not_found", "/reply_set")


async def test_too_large_a_request_is_refused_with_the_limit(explains: Explains) -> None:
    assert_problem(await explains.intent(["a"] * (MAX_EXPLAINED + 1)), 413, "explanation_too_large", "/inputs")
    many = [f"a{index}" for index in range(MAX_COMPARED + 1)]
    refused = await explains.reply(candidates=many)
    assert_problem(refused, 413, "explanation_too_large", "/candidates")
    assert str(MAX_COMPARED) in refused.json()["detail"]
    assert results(await explains.reply(candidates=many, target=MAX_COMPARED))[0]["target"]["index"] == MAX_COMPARED
    long = [{"speaker": "customer", "text": "a" * 3000}]
    answer = await explains.reply(turns=long, candidates=["a"], method="attention", layers=[0, 1] * 9)
    assert_problem(answer, 413, "explanation_too_large", "/turns")


async def test_malformed_bodies_are_refused(explains: Explains) -> None:
    for path in (INTENT, REPLIES):
        for content, status, code in ((b"{", 400, "malformed_json"), (b"\xff", 400, "malformed_body")):
            assert_problem(await explains.client.post(path, content=content, headers=JSON), status, code)


async def test_a_remote_model_has_no_explanations(bundle: Bundle, metrics: Metrics) -> None:
    app = app_of(bundle, HeadRegistry(bundle, None), metrics, explains=False)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        assert_problem(await client.post(INTENT, json={"inputs": "ab"}), 404, "not_found")
        body = {"turns": DIALOGUE, "candidates": ["a"]}
        assert_problem(await client.post(REPLIES, json=body), 404, "not_found")
