"""The gateway's queue refuses what is too much or would be late, and counts only what waits."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from service.cluster.remote import RemotePredictor
from service.cluster.remote_call import RemoteResponse
from service.errors import Overloaded
from service.fairness.client import CLIENT
from service.telemetry.metrics import Metrics
from tests.service.telemetry.test_metrics import samples
from tests.support.fake_handle import (
    NO_COUNTS,
    Clock,
    Handle,
    answering,
    fill_calls,
    labels,
    problem,
    run_pending_tasks,
    send,
)

pytestmark = pytest.mark.anyio


async def test_a_full_queue_refuses_with_a_retry_time(remote: RemotePredictor, handle: Handle) -> None:
    first = await fill_calls(remote, handle)
    await asyncio.sleep(0.1)  # so that at most 360 tokens per second are measured
    handle.sent[0].reply()
    await run_pending_tasks()
    first.append(await send(remote, "busy again"))
    long = "x" * 1000  # counts as 512 tokens, the maximum
    waiting = [await send(remote, *[long] * 3), await send(remote, long)]
    refused = await problem(await send(remote, "one more"))
    assert type(refused) is Overloaded
    assert int(refused.headers["Retry-After"]) >= 5
    handle.sent[1].reply()
    await run_pending_tasks()
    waiting.append(await send(remote, "one more"))
    async with answering(handle):
        await asyncio.gather(*first, *waiting)


async def test_an_oversized_request_is_accepted_while_nothing_waits(remote: RemotePredictor, handle: Handle) -> None:
    tasks = [*await fill_calls(remote, handle), await send(remote, *["x" * 1000] * 5)]
    async with answering(handle):
        await asyncio.gather(*tasks)


async def measure_slow_replica(remote: RemotePredictor, handle: Handle, clock: Clock) -> None:
    """Let the predictor measure 103 tokens per second. The clock stands still afterwards."""
    clock.now_s = 0.0
    first = await send(remote, "x" * 100)
    clock.now_s = 1.0
    handle.sent[0].reply()
    await first


async def test_a_request_that_would_be_late_is_refused_on_arrival(
    remote: RemotePredictor, handle: Handle, clock: Clock
) -> None:
    await measure_slow_replica(remote, handle, clock)
    large = await send(remote, "x" * 500, deadline_s=2.0)  # 4.9 s of work, but nothing is ahead of it
    refused = await problem(await send(remote, "x" * 50, deadline_s=7.0))
    assert type(refused) is Overloaded
    assert refused.headers == {"Retry-After": "5"}
    patient = await send(remote, "x" * 50, deadline_s=10.0)
    async with answering(handle):
        await asyncio.gather(large, patient)


async def test_refusals_do_not_count_as_throughput(remote: RemotePredictor, handle: Handle, clock: Clock) -> None:
    await measure_slow_replica(remote, handle, clock)
    refused, large = await send(remote, "x" * 500), await send(remote, "x" * 500)
    handle.sent[1].outcome.set_result(RemoteResponse((Overloaded("Full.", retry_after_s=1),), NO_COUNTS, "f" * 64))
    await problem(refused)
    assert type(await problem(await send(remote, "x" * 50, deadline_s=7.0))) is Overloaded
    async with answering(handle):
        await large


async def test_without_a_replica_the_old_throughput_refuses_nobody(
    remote: RemotePredictor, handle: Handle, clock: Clock
) -> None:
    await measure_slow_replica(remote, handle, clock)
    large = await send(remote, "x" * 500)
    handle.replicas = 0
    waits = await send(remote, "x" * 50, deadline_s=7.0)
    async with answering(handle):
        await asyncio.gather(large, waits)


async def test_a_failed_call_no_longer_counts_as_pending(remote: RemotePredictor, handle: Handle, clock: Clock) -> None:
    await measure_slow_replica(remote, handle, clock)
    large = await send(remote, "x" * 500)
    handle.sent[1].outcome.set_exception(grpc.RpcError())
    await problem(large)
    async with answering(handle):
        await (await send(remote, "x" * 500, deadline_s=2.0))


async def test_an_abandoned_request_no_longer_counts_as_pending(
    remote: RemotePredictor, handle: Handle, clock: Clock
) -> None:
    await measure_slow_replica(remote, handle, clock)
    first = await fill_calls(remote, handle)
    gone = await send(remote, "x" * 500)
    gone.cancel()
    await run_pending_tasks()
    stays = await send(remote, "x" * 50, deadline_s=3.0)
    async with answering(handle):
        await asyncio.gather(*first, stays)


async def test_a_call_names_the_client_of_each_request(remote: RemotePredictor, handle: Handle) -> None:
    tasks = []
    for client in ("a", "b"):
        token = CLIENT.set(client)
        tasks.append(await send(remote, "good"))
        CLIENT.reset(token)
    async with answering(handle):
        await asyncio.gather(*tasks)
    assert [request.client for call in handle.sent for request in call.requests] == ["a", "b"]


async def test_empty_texts_count_in_the_queue(remote: RemotePredictor, handle: Handle) -> None:
    first = await fill_calls(remote, handle)
    waiting = [await send(remote, *[""] * 600)]
    waiting.append(await send(remote, *[""] * 60))
    assert type(await problem(await send(remote, *[""] * 60))) is Overloaded
    async with answering(handle):
        await asyncio.gather(*first, *waiting)


async def test_a_request_abandoned_in_the_queue_is_never_sent(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    first = await fill_calls(remote, handle)
    gone, stays = await send(remote, "gone", "gone"), await send(remote, "stays")
    assert samples(metrics)["heed_queue_depth", "sentiment"] == 3
    gone.cancel()
    await run_pending_tasks()
    assert samples(metrics)["heed_queue_depth", "sentiment"] == 1
    async with answering(handle):
        assert labels(await stays) == ["stays"]
        await asyncio.gather(*first)
    assert handle.sent[-1].texts == ["stays"]
