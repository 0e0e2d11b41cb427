"""The examples of the OpenAPI document: the shipped models give these answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.bundle import SHIPPED_BUNDLES
from service.schemas import examples, explanation_examples
from service.telemetry.metrics import Metrics
from tests.support.whole_app import whole_service

pytestmark = pytest.mark.anyio

TOLERANCE = 0.05
"""Processors round 8-bit models differently, which moves scores in the second decimal."""

ANSWERS = [
    ("POST", "/v1/sentiment", examples.SENTIMENT_REQUEST, examples.SENTIMENT_RESPONSE),
    ("POST", "/v1/sentiment", {"inputs": [7]}, examples.PROBLEM),
    ("POST", "/v1/intent", examples.INTENT_REQUEST, examples.INTENT_RESPONSE),
    ("POST", "/v1/replies", examples.REPLIES_REQUEST, examples.REPLIES_RESPONSE),
    ("POST", "/v1/recommend", examples.RECOMMEND_REQUEST, examples.RECOMMEND_RESPONSE),
    ("PUT", "/v1/catalogues/online_retail/items", examples.EDIT_REQUEST, examples.EDIT_RESPONSE),
    (
        "POST",
        "/v1/explain/sentiment",
        explanation_examples.EXPLAIN_SENTIMENT_REQUEST,
        explanation_examples.EXPLAIN_SENTIMENT_RESPONSE,
    ),
    (
        "POST",
        "/v1/explain/intent",
        explanation_examples.EXPLAIN_INTENT_REQUEST,
        explanation_examples.EXPLAIN_INTENT_RESPONSE,
    ),
    (
        "POST",
        "/v1/explain/replies",
        explanation_examples.EXPLAIN_REPLIES_REQUEST,
        explanation_examples.EXPLAIN_REPLIES_RESPONSE,
    ),
    (
        "POST",
        "/v1/explain/recommend",
        explanation_examples.EXPLAIN_RECOMMEND_REQUEST,
        explanation_examples.EXPLAIN_RECOMMEND_RESPONSE,
    ),
    ("GET", "/healthz", None, examples.HEALTH),
]
OTHER_REQUESTS = [
    ("/v1/recommend", examples.CANDIDATES_REQUEST),
    ("/v1/explain/sentiment", explanation_examples.ATTENTION_REQUEST),
]


@pytest.fixture
async def client(tmp_path: Path, metrics: Metrics) -> AsyncIterator[httpx.AsyncClient]:
    async with whole_service(SHIPPED_BUNDLES, tmp_path, metrics) as running:
        yield running


def comparable(value: Any) -> Any:
    """Return an answer without what differs between runs: times, the id of a request, far digits of numbers."""
    if isinstance(value, dict):
        return {key: comparable(inner) for key, inner in value.items() if key not in ("timings_ms", "instance")}
    if isinstance(value, list):
        return [comparable(inner) for inner in value]
    return pytest.approx(value, abs=TOLERANCE) if isinstance(value, float) else value


async def test_answers_are_those_of_the_shipped_models(client: httpx.AsyncClient) -> None:
    for method, path, request, expected in ANSWERS:
        answer = (await client.request(method, path, json=request)).json()
        assert comparable(answer) == comparable(expected), path
        assert list(answer) == list(expected), path
        assert answer.get("timings_ms", {}).keys() == expected.get("timings_ms", {}).keys()
    for path, request in OTHER_REQUESTS:
        answer = await client.post(path, json=request)
        assert answer.status_code == 200
        assert not any("error" in result for result in answer.json()["results"])
    assert (await client.get("/v1/catalogues/online_retail")).json() == examples.CATALOGUE
    assert (await client.get("/v1/catalogues")).json() == examples.CATALOGUES


async def test_models_and_metrics_have_what_the_examples_show(client: httpx.AsyncClient) -> None:
    served = (await client.get("/v1/models")).json()["models"]
    (expected,) = examples.MODELS["models"]
    model = next(model for model in served if model["name"] == expected["name"])
    assert expected["metrics"][0] in model["metrics"]
    assert model | {"metrics": expected["metrics"]} == expected
    for _ in range(2):
        await client.post("/v1/sentiment", json=examples.SENTIMENT_REQUEST)
    text = (await client.get("/metrics")).text
    assert set(examples.METRICS.splitlines()) <= set(text.splitlines())
