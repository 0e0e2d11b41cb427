"""Requests that wait together cross in one call, and the number of calls is bounded."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.cluster.remote import CALLS_PER_REPLICA, RemotePredictor
from service.inference.predictor import Item
from tests.support.fake_handle import REQUEST, Handle, answering, fill_calls, labels, run_pending_tasks, send

pytestmark = pytest.mark.anyio


async def test_an_idle_model_gets_calls_immediately_and_a_busy_one_gets_the_rest_in_one_call(
    remote: RemotePredictor, handle: Handle
) -> None:
    first = await fill_calls(remote, handle)
    assert [response.texts for response in handle.sent] == [["busy 0"], ["busy 1"], ["busy 2"], ["busy 3"]]
    rest = [await send(remote, f"a {index}", f"b {index}") for index in range(20)]
    assert len(handle.sent) == 4
    handle.sent[1].reply()
    await run_pending_tasks()
    assert len(handle.sent) == 5
    assert handle.sent[4].texts == [f"{letter} {index}" for index in range(20) for letter in "ab"]
    async with answering(handle):
        assert [labels(await task) for task in first] == [[f"busy {index}"] for index in range(4)]
        assert [labels(await task) for task in rest] == [[f"a {index}", f"b {index}"] for index in range(20)]
    assert len(handle.sent) == 5


async def test_simultaneous_requests_leave_in_one_call(remote: RemotePredictor, handle: Handle) -> None:
    tasks = [asyncio.create_task(remote.predict([Item(f"{index}")])) for index in range(9)]
    await run_pending_tasks()
    assert [len(response.requests) for response in handle.sent] == [9]
    handle.sent[0].reply()
    assert [labels(await task) for task in tasks] == [[f"{index}"] for index in range(9)]


async def test_each_request_crosses_with_its_flag_and_its_time(remote: RemotePredictor, handle: Handle) -> None:
    first = await fill_calls(remote, handle)
    now_s = time.monotonic()
    tasks = [
        await send(remote, "cut"),
        await send(remote, "not to be cut", truncate=False, deadline_s=now_s + 100),
        await send(remote, "soon", deadline_s=now_s + 50),
    ]
    handle.sent[0].reply()
    await run_pending_tasks()
    forever, later, soon = handle.sent[4].requests
    assert [request.truncate for request in handle.sent[4].requests] == [True, False, True]
    assert forever.remaining_s == float("inf")
    assert 90 < later.remaining_s <= 100 - 0.05  # the way back takes time too
    assert 40 < soon.remaining_s <= 50 - 0.05
    async with answering(handle):
        await asyncio.gather(*first, *tasks)


@pytest.mark.parametrize("handle", [Handle(3)])
async def test_replicas_share_the_queue_but_get_at_least_a_batch_each(remote: RemotePredictor, handle: Handle) -> None:
    first = await fill_calls(remote, handle)
    tasks = [await send(remote, f"{index}") for index in range(90)]
    for response in handle.sent[:6]:
        response.reply()
        await run_pending_tasks()
    assert [len(response.requests) for response in handle.sent[12:]] == [30, 20, 16, 16, 8]
    async with answering(handle):
        await asyncio.gather(*first, *tasks)


async def test_a_request_is_never_split(remote: RemotePredictor, handle: Handle) -> None:
    handle.replicas = 2
    tasks = [asyncio.create_task(remote.predict([Item("good")] * size)) for size in (1, 256, 1)]
    await run_pending_tasks()
    assert [[len(request.items) for request in response.requests] for response in handle.sent] == [[1], [256], [1]]
    async with answering(handle):
        await asyncio.gather(*tasks)


async def test_another_replica_raises_the_bound_on_calls(remote: RemotePredictor, handle: Handle) -> None:
    first = await fill_calls(remote, handle)
    waiting = [await send(remote, "good") for _ in range(4)]
    assert len(handle.sent) == CALLS_PER_REPLICA
    handle.replicas = 2
    more = [await send(remote, "bad") for _ in range(2)]
    assert len(handle.sent) > CALLS_PER_REPLICA
    async with answering(handle):
        await asyncio.gather(*first, *waiting, *more)


async def test_a_call_runs_outside_the_context_of_a_request(remote: RemotePredictor, handle: Handle) -> None:
    """Serve reads from the context which request a call belongs to, and cancels it when that client disconnects."""
    REQUEST.set("mine")
    task = await send(remote, "good")
    assert handle.sent[0].context == "none"
    handle.sent[0].reply()
    await task
