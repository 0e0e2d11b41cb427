"""One record per request, and what must never be in it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.responses import StreamingResponse

from service.api.gateway import create_app
from service.inference.cache import CachedPredictor
from service.settings import Settings
from service.telemetry import logs
from service.telemetry.access_log import AccessLog
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("restored_logs")]

SECRET = "Zanzibar"


async def records_of(
    folder: Path, metrics: Metrics, capfd: pytest.CaptureFixture[str], *requests: dict[str, Any]
) -> list[dict[str, Any]]:
    """Send the requests to a logging service, one after another, and return the records of its log."""
    output = logs.configure("gateway", "info", "json")
    engine = fakes.make_engine(folder, metrics, fakes.FakeRuntime(), fakes.LIMITS)
    cache = CachedPredictor(engine, 0, metrics.task("sentiment"))
    app = create_app({"sentiment": cache}, Settings(), metrics, access_log=AccessLog(output))

    @app.get("/broken-stream")
    async def broken_stream() -> StreamingResponse:
        async def parts() -> Any:
            yield b"12345"
            raise RuntimeError(SECRET)

        return StreamingResponse(parts())

    client = httpx.AsyncClient(transport=httpx.ASGITransport(app, False), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        for request in requests:
            await client.request(**request)
    out, err = capfd.readouterr()
    assert out == ""
    assert SECRET not in err
    return [json.loads(line) for line in err.splitlines()]


def requests_in(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if record["event"] == "request"]


async def test_each_request_has_one_record_without_texts_or_entities(
    tmp_path: Path, metrics: Metrics, capfd: pytest.CaptureFixture[str]
) -> None:
    items = [{"text": f"good {SECRET}", "entity": SECRET, "id": SECRET}, f"bad {SECRET}", ""]
    body = json.dumps({"inputs": items}).encode()
    headers = {"content-type": "application/json", "x-request-id": "my-id", "user-agent": SECRET}
    records = await records_of(
        tmp_path,
        metrics,
        capfd,
        {"method": "POST", "url": "/v1/sentiment", "content": body, "headers": headers},
        {"method": "POST", "url": f"/v1/{SECRET}?q={SECRET}", "content": body, "headers": headers},
        {"method": "POST", "url": "/v1/sentiment", "content": f'{{"{SECRET}": 1}}', "headers": headers},
        {"method": SECRET, "url": "/healthz"},
    )
    answered, unknown, invalid, method = requests_in(records)
    assert answered.pop("ms") > 0
    assert answered.pop("bytes") > 100
    for name in ("time", "pid"):
        del answered[name]
    assert answered == {
        "level": "info", "event": "request", "process": "gateway", "request_id": "my-id", "method": "POST",
        "route": "/v1/sentiment", "status": 200, "items": 3, "bytes_in": len(body),
    }  # fmt: skip
    assert (unknown["route"], unknown["status"], unknown["code"]) == ("other", 404, "not_found")
    assert (invalid["status"], invalid["code"], invalid["items"]) == (422, "invalid_request", 0)
    assert (method["method"], method["status"]) == ("other", 405)


async def test_the_life_of_a_gateway_is_logged(
    tmp_path: Path, metrics: Metrics, capfd: pytest.CaptureFixture[str]
) -> None:
    events = [record["event"] for record in await records_of(tmp_path, metrics, capfd)]
    assert events == ["model loaded", "gateway ready", "gateway stopping", "gateway stopped"]


async def test_a_fault_of_the_model_names_the_requests_that_it_failed(
    tmp_path: Path, metrics: Metrics, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = logs.configure("gateway", "info", "json")
    engine = fakes.make_engine(tmp_path, metrics, runtime := fakes.FakeRuntime(), fakes.LIMITS)
    app = create_app({"sentiment": engine}, Settings(), metrics, access_log=AccessLog(output))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed")
    async with client, app.router.lifespan_context(app):
        monkeypatch.setattr(runtime, "run", _fail)
        headers = {"x-request-id": "lost-1"}
        response = await client.post("/v1/sentiment", json={"inputs": f"good {SECRET} " * 400}, headers=headers)
    assert response.status_code == 500
    err = capfd.readouterr().err
    assert SECRET not in err
    records = [json.loads(line) for line in err.splitlines()]
    (fault,) = [record for record in records if record["event"] == "inference failed"]
    assert (fault["request_ids"], fault["error"]) == (["lost-1"], "RuntimeError")
    assert "_fail" in fault["trace"][-1]
    (request,) = requests_in(records)
    assert (request["level"], request["code"], request["request_id"]) == ("error", "inference_failed", "lost-1")


def _fail(_: object) -> None:
    raise RuntimeError(SECRET)


async def test_an_answer_that_breaks_off_is_logged_with_its_trace_and_counted(
    tmp_path: Path, metrics: Metrics, capfd: pytest.CaptureFixture[str]
) -> None:
    headers = {"x-request-id": "broken-1"}
    records = await records_of(tmp_path, metrics, capfd, {"method": "GET", "url": "/broken-stream", "headers": headers})
    fault, request = (record for record in records if record.get("request_id") == "broken-1")
    assert (fault["event"], fault["error"]) == ("unhandled", "RuntimeError")
    assert (request["status"], request["code"], request["bytes"]) == (500, "internal_error", 5)


async def test_a_task_that_nobody_awaits_is_logged_without_its_text(capfd: pytest.CaptureFixture[str]) -> None:
    logs.configure("gateway", "info", "json")
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(None)  # the one of anyio fails the test
    logs.log_loop_faults()
    loop.call_soon(_fail, None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    record = json.loads(capfd.readouterr().err)
    assert (record["event"], record["error"]) == ("background task failed", "RuntimeError")
