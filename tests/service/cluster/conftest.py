"""A predictor before a handle that the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.cluster.remote import RemotePredictor
from service.telemetry.metrics import Metrics
from tests.support import fake_model as fakes
from tests.support.fake_handle import LIMITS, TIMEOUT_S, Clock, Handle, answering


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def handle() -> Handle:
    return Handle()


@pytest.fixture
async def remote(tmp_path: Path, metrics: Metrics, handle: Handle, clock: Clock) -> AsyncIterator[RemotePredictor]:
    counts = (metrics.task("sentiment"), metrics.calls("sentiment"))
    predictor = RemotePredictor(fakes.make_bundle(tmp_path), handle, handle.count, LIMITS, *counts, clock=clock)
    await predictor.start()
    yield predictor
    async with answering(handle):
        await asyncio.wait_for(predictor.stop(), TIMEOUT_S)
