"""Requests wait for a replica until their deadline, and then get the problem that explains why."""

from __future__ import annotations

import asyncio
import time

import httpx
import pytest

from service.api.gateway import create_app
from service.cluster.remote import CALLS_PER_REPLICA, RemotePredictor
from service.errors import DeadlineExceeded, NotReady
from service.inference.cache import CachedPredictor
from service.inference.predictor import Item
from service.settings import Settings
from service.telemetry.metrics import Metrics
from tests.support.fake_handle import Handle, answering, labels, problem, run_pending_tasks, send
from tests.support.service_app import assert_problem

pytestmark = pytest.mark.anyio


async def test_the_timeout_of_a_caller_crosses_with_its_request(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    app = create_app({"sentiment": remote}, Settings(), metrics)
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed") as client,
        answering(handle),
    ):
        await client.post("/v1/sentiment", json={"inputs": "good"}, headers={"X-Request-Timeout-Ms": "4000"})
        await client.post("/v1/sentiment", json={"inputs": "good"}, headers={"X-Request-Timeout-Ms": "99000"})
    stated, capped = (response.requests[0].remaining_s for response in handle.sent)
    assert 2 < stated <= 4 - 2 * 0.05  # a hop back to this gateway, and one to the caller
    assert 6 < capped <= 10 - 2 * 0.05


async def test_a_late_request_frees_its_call(remote: RemotePredictor, handle: Handle) -> None:
    blocked = [await send(remote, "good", deadline_s=time.monotonic() + 0.05) for _ in range(CALLS_PER_REPLICA)]
    waiting = await send(remote, "still wanted")
    assert {type(await problem(task)) for task in blocked} == {NotReady}
    async with answering(handle):
        assert labels(await waiting) == ["still wanted"]


async def test_without_a_replica_requests_wait_until_their_deadline_for_one(
    remote: RemotePredictor, handle: Handle
) -> None:
    handle.replicas = 0
    assert not remote.ready
    assert remote.healthy
    sent, waiting = [
        [await send(remote, "good", deadline_s=time.monotonic() + 0.2) for _ in range(count)]
        for count in (CALLS_PER_REPLICA, 3)
    ]
    patient = await send(remote, "patient")
    problems = [await problem(task) for task in [*sent, *waiting]]
    assert {type(each) for each in problems} == {NotReady}
    assert all(int(each.headers["Retry-After"]) >= 1 for each in problems)
    handle.replicas = 1
    assert remote.ready
    async with answering(handle):
        assert labels(await patient) == ["patient"]


async def test_concurrent_callers_of_one_text_get_the_same_problem(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    handle.replicas = 0
    cache = CachedPredictor(remote, 0, metrics.task("sentiment"))
    now_s = time.monotonic()
    tasks = [
        asyncio.create_task(cache.predict([Item("same")], deadline_s=now_s + seconds)) for seconds in (0.2, 0.3, 0.4)
    ]
    await run_pending_tasks()
    assert [response.texts for response in handle.sent] == [["same"]]
    assert {type(await problem(task)) for task in tasks} == {NotReady}


async def test_a_gateway_without_a_replica_is_healthy_but_not_ready(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    handle.replicas = 0
    app = create_app({"sentiment": remote}, Settings(request_timeout_s=0.1), metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://heed") as client:
        assert_problem(await client.post("/v1/sentiment", json={"inputs": "good"}), 503, "not_ready")
        assert_problem(await client.get("/readyz"), 503, "not_ready")
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/v1/models")).json()["models"][0]["version"] == "1.2.3"


@pytest.mark.slow
async def test_a_model_that_answers_other_requests_is_late_not_gone(remote: RemotePredictor, handle: Handle) -> None:
    slow = await send(remote, "slow", deadline_s=time.monotonic() + 1.0)
    other = await send(remote, "other")
    handle.sent[1].reply()
    await other
    assert type(await problem(slow)) is DeadlineExceeded


@pytest.mark.slow
async def test_a_late_request_without_any_replica_gets_not_ready(remote: RemotePredictor, handle: Handle) -> None:
    late = await send(remote, "late", deadline_s=time.monotonic() + 0.5)
    other = await send(remote, "other")
    handle.sent[1].reply()
    await other
    handle.replicas = 0
    assert type(await problem(late)) is NotReady
