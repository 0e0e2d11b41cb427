"""The HTTP application over a real engine: all inputs, all refusals, and their metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.gateway import create_app
from service.inference.cache import CachedPredictor
from service.schemas.sentiment import SentimentResponse, SentimentResult
from service.schemas.wire import FailedItem
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes
from tests.support.service_app import Service, assert_problem, serving

pytestmark = pytest.mark.anyio

# Answers.


async def test_the_answer_has_the_documented_fields(service: Service) -> None:
    response = await service.ask(["good day", {"text": "bad day", "entity": "day", "id": "n-17"}])
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert (body["model"], body["version"], set(body["timings_ms"])) == (
        "sentiment",
        "1.2.3",
        {"tokenize", "queue", "infer"},
    )
    first, second = body["results"]
    assert list(first) == ["label", "scores", "polarity", "tokens", "truncated", "language", "id"]
    assert (first["label"], first["tokens"], first["truncated"], first["id"]) == ("positive", 4, False, None)
    assert (second["label"], second["id"]) == ("negative", "n-17")
    assert list(first["scores"]) == ["negative", "neutral", "positive"]
    assert sum(first["scores"].values()) == pytest.approx(1)
    assert first["polarity"] == pytest.approx(first["scores"]["positive"] - first["scores"]["negative"])


@pytest.mark.parametrize("inputs", ["good", {"text": "good"}, ["good"], [{"text": "good"}]])
async def test_a_single_text_has_a_single_result_in_every_form(service: Service, inputs: Any) -> None:
    (result,) = (await service.ask(inputs)).json()["results"]
    assert result["label"] == "positive"


@pytest.mark.parametrize(
    "text",
    [
        "a" * 2**20,
        "a" + "\u0301" * 100_000,
        "good\0day",
        "👩‍👩‍👧‍👦 🏳️‍🌈",
        "\u202eשלום עולם",
        "利润 beats 预期，Q3",
        "\ue000",
    ],
    ids=["1 MB word", "combining marks", "NUL", "joined emoji", "right to left", "mixed", "private use"],
)
async def test_unusual_text_is_answered(service: Service, text: str) -> None:
    response = await service.ask(text)
    assert response.status_code == 200
    assert "label" in response.json()["results"][0]


async def test_256_texts_are_answered_in_order(service: Service) -> None:
    words = ["good", "bad", "fine"]
    results = (await service.ask([f"{words[index % 3]} {index}" for index in range(256)])).json()["results"]
    assert [result["label"] for result in results] == (["positive", "negative", "neutral"] * 86)[:256]


async def test_a_failed_text_has_its_error_and_does_not_affect_the_rest(service: Service) -> None:
    response = await service.ask(["good", {"text": " ", "id": "x"}, {"text": "bad", "entity": "\t"}, "poison", "bad"])
    assert response.status_code == 200
    first, empty, no_entity, poisoned, last = response.json()["results"]
    assert (first["label"], last["label"]) == ("positive", "negative")
    assert set(empty["error"]) == {"status", "code", "title", "detail", "pointer"}
    assert (empty["error"]["status"], empty["error"]["code"], empty["id"]) == (422, "empty_text", "x")
    assert (no_entity["error"]["status"], no_entity["error"]["code"]) == (422, "invalid_request")
    assert (poisoned["error"]["status"], poisoned["error"]["code"]) == (500, "inference_failed")
    assert "secret" not in response.text


async def test_the_answer_fits_its_schema(service: Service) -> None:
    """Validate the answer, because the service writes it without its schema."""
    named, unnamed = {"text": "bad day", "entity": "day"}, {"text": "bad", "entity": "day"}
    response = await service.ask(["good", {"text": " ", "id": "x"}, named, unnamed, "poison"])
    read = SentimentResponse.model_validate_json(response.content)
    kinds = [SentimentResult, FailedItem, SentimentResult, SentimentResult, FailedItem]
    assert [type(result) for result in read.results] == kinds
    assert read.model_dump(mode="json", exclude_unset=True) == response.json()


@pytest.mark.parametrize(
    ("inputs", "code", "pointer"),
    [
        ("", "empty_text", "/inputs"),
        (" \n\t", "empty_text", "/inputs"),
        ({"text": "\0"}, "empty_text", "/inputs/text"),
        (["\u200b", ""], "empty_text", "/inputs/0"),
        ([{"text": ""}], "empty_text", "/inputs/0/text"),
        ([{"text": "good", "entity": ""}], "invalid_request", "/inputs/0/entity"),
    ],
)
async def test_without_a_usable_text_the_first_problem_is_that_of_the_request(
    service: Service, inputs: Any, code: str, pointer: str
) -> None:
    assert_problem(await service.ask(inputs), 422, code, pointer)


async def test_a_long_text_is_truncated_and_marked_or_refused(service: Service) -> None:
    (result,) = (await service.ask("good " * 600)).json()["results"]
    assert (result["truncated"], result["tokens"]) == (True, 512)
    assert_problem(await service.ask(["good " * 600], truncate=False), 422, "text_too_long", "/inputs/0")


# Refusals. All faults of JSON are in test_body; here is an example of each kind, through the whole service.


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer"),
    [
        (b"", 400, "malformed_json", None),
        (b'{"inputs": ["a"', 400, "malformed_json", None),
        (b'{"inputs": NaN}', 400, "malformed_json", None),
        (b"[" * 10_000, 400, "malformed_json", None),
        (b'{"inputs": "\xff"}', 400, "malformed_body", None),
        (b'{"inputs": ["\\ud800"]}', 422, "invalid_request", "/inputs/0"),
        (b'{"inputs": [true, 1]}', 422, "invalid_request", "/inputs/0"),
        (b'{"inputs": []}', 422, "invalid_request", "/inputs"),
        (b'{"inputs": ["a"], "top_k": 1}', 422, "invalid_request", "/top_k"),
        (b'{"inputs": ["a"], "\\udc80": 1}', 422, "invalid_request", ""),
        (json.dumps({"inputs": ["a"] * 257}).encode(), 422, "invalid_request", "/inputs"),
    ],
    ids=lambda value: value[:20].decode("utf-8", "replace") if isinstance(value, bytes) else None,
)
async def test_a_wrong_body_is_refused(
    service: Service, body: bytes, status: int, code: str, pointer: str | None
) -> None:
    assert_problem(await service.send(body), status, code, pointer)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": "application/x-json"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
    ids=str,
)
async def test_a_body_that_is_not_plain_json_is_refused(service: Service, headers: dict[str, str]) -> None:
    assert_problem(await service.send(b'{"inputs": "good"}', headers), 415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json; charset=UTF-8", "Application/JSON", "application/vnd.api+json"])
async def test_every_media_type_of_json_is_accepted(service: Service, kind: str) -> None:
    assert (await service.send(b'{"inputs": "good"}', {"content-type": kind})).status_code == 200


@pytest.mark.parametrize("path", ["/console", "/v1", "/v1/sentiment//", "/v1/../etc/passwd", "/v1/%00", "/metrics/x"])
async def test_an_unknown_route_is_not_found(service: Service, path: str) -> None:
    assert_problem(await service.client.get(path), 404, "not_found")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/sentiment", "POST"), ("PUT", "/v1/sentiment", "POST"), ("POST", "/readyz", "GET, HEAD")],
)
async def test_a_wrong_method_gets_the_allowed_ones(service: Service, method: str, path: str, allowed: str) -> None:
    response = await service.client.request(method, path)
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed


# Health.


async def test_the_service_is_alive_but_not_ready_until_the_models_are_warm(tmp_path: Path, metrics: Metrics) -> None:
    async with serving(tmp_path, metrics) as service:
        engine = fakes.make_engine(tmp_path, metrics, fakes.FakeRuntime())
        cold_predictor = CachedPredictor(engine, 0, metrics.task("sentiment"))
        cold = create_app({"sentiment": cold_predictor}, Settings(), metrics)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(cold), base_url="http://heed") as client:
            assert (await client.get("/healthz")).json() == {"status": "ok"}
            assert_problem(await client.get("/readyz"), 503, "not_ready")
            assert_problem(await client.post("/v1/sentiment", json={"inputs": "good"}), 503, "not_ready")
        assert (await service.client.get("/readyz")).json() == {"status": "ok"}
        await service.engine.stop()
        assert_problem(await service.client.get("/readyz"), 503, "not_ready")
        assert (await service.client.get("/healthz")).status_code == 200


async def test_a_dead_inference_thread_is_unhealthy(service: Service) -> None:
    def die(_: object) -> None:
        raise SystemExit

    service.runtime.on_run = die
    assert_problem(await service.ask("good"), 503, "not_ready")
    assert_problem(await service.client.get("/healthz"), 503, "not_ready")
    assert_problem(await service.client.get("/readyz"), 503, "not_ready")


async def test_models_are_listed_with_their_details(service: Service) -> None:
    (model,) = (await service.client.get("/v1/models")).json()["models"]
    assert model == {
        "name": "sentiment",
        "version": "1.2.3",
        "task": "sentiment",
        "labels": ["negative", "neutral", "positive"],
        "label_sets": {},
        "reply_sets": [],
        "languages": ["en", "zh"],
        "digest": "f" * 64,
        "base": "tiny",
        "limits": {"max_tokens": 512, "max_inputs": 256, "max_body_bytes": 2 * 2**20},
        "metrics": [
            {"dataset": "headlines", "language": "en", "name": "macro_f1", "value": 0.9, "command": "heed evaluate"}
        ],
    }


# Documentation.


async def test_the_docs_page_needs_no_other_host(service: Service) -> None:
    page = await service.client.get("/docs")
    assert page.status_code == 200
    assert not re.search(r"https?://|src=\"//", page.text)
    local = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
    assert len(local) == 3
    for path in local:
        assert (await service.client.get(path)).status_code == 200


async def test_the_openapi_document_is_whole(service: Service) -> None:
    document = (await service.client.get("/openapi.json")).json()
    tasks = {"/v1/sentiment", "/v1/explain/sentiment"}
    assert set(document["paths"]) == tasks | {"/v1/models", "/healthz", "/readyz", "/metrics"}
    references = set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= set(document["components"]["schemas"])
    post = document["paths"]["/v1/sentiment"]["post"]
    assert post["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/SentimentRequest")
    assert post["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/SentimentResponse")
    assert set(post["responses"]) == {"200", "400", "408", "413", "415", "422", "429", "500", "502", "503", "504"}
    assert post["responses"]["422"]["$ref"] == "#/components/responses/Problem"
