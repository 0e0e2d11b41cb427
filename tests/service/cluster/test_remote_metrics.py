"""Timings of a call and counts of its replica reach the caller and the gateway's metrics."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.cluster.remote import RemotePredictor
from service.cluster.remote_call import EngineCounts
from service.telemetry.batch_report import BatchReport
from service.telemetry.metrics import Metrics
from tests.service.telemetry.test_metrics import samples
from tests.support.fake_handle import Handle, send

pytestmark = pytest.mark.anyio


async def test_the_timings_add_up_to_the_time_of_the_caller(remote: RemotePredictor, handle: Handle) -> None:
    started_s = time.monotonic()
    task = await send(remote, "good")
    await asyncio.sleep(0.1)
    handle.sent[0].reply()
    timings = (await task).timings
    total_s = time.monotonic() - started_s
    assert (timings.tokenize_s, timings.infer_s) == (0.001, 0.003)
    assert 0.1 <= sum((timings.tokenize_s, timings.queue_s, timings.infer_s)) <= total_s


async def test_counts_of_the_replica_are_recorded_in_the_gateway(
    remote: RemotePredictor, handle: Handle, metrics: Metrics
) -> None:
    task = await send(remote, "good", "bad")
    report = BatchReport(queued_s=(0.1, 0.2), tokens=8, padded_tokens=10, infer_s=0.5)
    handle.sent[0].reply(EngineCounts((report,), (0.01,)))
    await task
    sampled = samples(metrics)
    assert sampled["heed_tokenize_seconds_count", "sentiment"] == 1
    assert sampled["heed_queue_seconds_count", "sentiment"] == 2
    assert sampled["heed_infer_seconds_sum", "sentiment"] == 0.5
    assert sampled["heed_call_items_sum", "sentiment"] == 2
    assert sampled["heed_call_seconds_count", "sentiment"] == 1
    assert sampled["heed_queue_depth", "sentiment"] == 0
