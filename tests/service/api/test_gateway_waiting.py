"""Full queues, deadlines, and the timeouts that callers set."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx
import pytest

from service.telemetry.metrics import Metrics
from tests.service.telemetry.test_metrics import samples
from tests.support.service_app import Service, assert_problem, serving

pytestmark = pytest.mark.anyio


async def test_a_full_queue_is_429_and_accepted_requests_are_answered(tmp_path: Path, metrics: Metrics) -> None:
    async with serving(tmp_path, metrics, queue_tokens=3) as service:
        first = await service.held()
        second = asyncio.ensure_future(service.ask("bad"))
        while not samples(metrics)["heed_queue_depth", "sentiment"]:
            await asyncio.sleep(0)
        assert_problem(await service.ask("fine"), 429, "overloaded")
        service.runtime.gate.set()
        assert [(await result).status_code for result in (first, second)] == [200, 200]


@pytest.mark.slow
async def test_past_the_deadline_is_504(tmp_path: Path, metrics: Metrics) -> None:
    async with serving(tmp_path, metrics, request_timeout_s=1.0) as service:
        service.runtime.gate.clear()
        assert_problem(await service.ask("good"), 504, "deadline_exceeded")


async def ask_waiting(service: Service, *values: str) -> httpx.Response:
    headers = [("content-type", "application/json"), *(("X-Request-Timeout-Ms", value) for value in values)]
    return await service.client.post("/v1/sentiment", content=b'{"inputs": "good"}', headers=headers)


@pytest.mark.parametrize("values", [("0",), ("-1",), ("1.5",), ("soon",), ("",), ("9" * 400,), ("\u0661",), ("5", "5")])
async def test_an_invalid_timeout_is_refused(service: Service, values: tuple[str, ...]) -> None:
    encoded = [value.encode() for value in values]
    headers = [(b"content-type", b"application/json"), *((b"x-request-timeout-ms", value) for value in encoded)]
    response = await service.client.post("/v1/sentiment", content=b'{"inputs": "good"}', headers=headers)
    assert_problem(response, 422, "invalid_request")
    assert "X-Request-Timeout-Ms" in response.json()["detail"]


async def test_a_shorter_timeout_ends_a_request_earlier(service: Service) -> None:
    service.runtime.gate.clear()
    assert_problem(await ask_waiting(service, "40"), 504, "deadline_exceeded")
    service.runtime.gate.set()
    assert (await ask_waiting(service, "9999")).status_code == 200


async def test_a_longer_timeout_does_not_extend_that_of_the_service(tmp_path: Path, metrics: Metrics) -> None:
    async with serving(tmp_path, metrics, request_timeout_s=0.05) as service:
        service.runtime.gate.clear()
        assert_problem(await ask_waiting(service, "600000"), 504, "deadline_exceeded")


async def test_a_time_too_short_for_the_work_is_504_and_one_too_short_for_the_queue_429(service: Service) -> None:
    service.runtime.on_run = lambda _: time.sleep(0.1)
    for _ in range(3):  # idle, it refuses nothing, however short the time
        assert_problem(await ask_waiting(service, "1"), 504, "deadline_exceeded")
        while service.engine.busy:
            await asyncio.sleep(0.001)
    assert (await service.ask([f"good {index}" for index in range(64)])).status_code == 200  # measures the rate
    service.runtime.gate.clear()
    service.runtime.entered.clear()
    long = asyncio.ensure_future(service.ask([f"bad {index}" for index in range(256)]))
    assert await asyncio.to_thread(service.runtime.entered.wait, 60)
    assert_problem(await ask_waiting(service, "200"), 429, "overloaded")
    service.runtime.gate.set()
    assert (await long).status_code == 200
