"""A Serve handle whose replicas answer only when the test says so, and callers of the predictor before it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from service.cluster.remote import CALLS_PER_REPLICA, RemotePredictor
from service.cluster.remote_call import EngineCounts, RemoteRequest, RemoteResponse
from service.errors import Problem
from service.inference.batch_policy import BatchLimits
from service.inference.predictor import Classification, Item, PredictionBatch, Timings
from tests.support import fake_model as fakes

LIMITS = BatchLimits(batch_tokens=2048, batch_items=16, queue_tokens=2048)
NO_COUNTS = EngineCounts((), ())
TIMEOUT_S = 30.0  # a caller that hangs fails its test
REQUEST: ContextVar[str] = ContextVar("REQUEST", default="none")


class Response:
    """A call under way, as Serve's handle returns it. The test decides its outcome."""

    def __init__(self, requests: Sequence[RemoteRequest]) -> None:
        self.requests = requests
        self.outcome: asyncio.Future[RemoteResponse] = asyncio.get_running_loop().create_future()
        self.cancelled = False
        self.context = REQUEST.get()

    def __await__(self) -> Generator[Any, None, RemoteResponse]:
        return self.outcome.__await__()

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def texts(self) -> list[str]:
        return [item.text for request in self.requests for item in request.items]

    def reply(self, counts: EngineCounts = NO_COUNTS, digest: str = "f" * 64) -> None:
        self.outcome.set_result(RemoteResponse(tuple(answer(request) for request in self.requests), counts, digest))


def answer(request: RemoteRequest) -> PredictionBatch:
    """Return an answer in which the label of each text is the text."""
    outcomes = tuple(Classification(3, False, 1, {item.text: 1.0}) for item in request.items)
    return PredictionBatch(outcomes, Timings(0.001, 0.002, 0.003))


class Handle:
    """A Serve handle with replicas that answer only when the test says so."""

    def __init__(self, replicas: int = 1) -> None:
        self.replicas = replicas
        self.sent: list[Response] = []
        self.failure: Exception | None = None

    @property
    def predict(self) -> Handle:
        return self

    def remote(self, requests: Sequence[RemoteRequest]) -> Response:
        if self.failure:
            raise self.failure
        self.sent.append(Response(requests))
        return self.sent[-1]

    def count(self) -> int:
        return self.replicas

    @property
    def open(self) -> list[Response]:
        return [response for response in self.sent if not response.outcome.done()]


class Clock:
    """The real time, until the test sets it."""

    def __init__(self) -> None:
        self.now_s: float | None = None

    def __call__(self) -> float:
        return time.monotonic() if self.now_s is None else self.now_s


@asynccontextmanager
async def answering(handle: Handle) -> AsyncIterator[None]:
    """Answer every call while the block runs."""

    async def reply_to_all() -> None:
        while True:
            for response in handle.open:
                response.reply()
            await asyncio.sleep(0)

    task = asyncio.create_task(reply_to_all())
    try:
        yield
    finally:
        task.cancel()


async def run_pending_tasks() -> None:
    """Run everything that can run without a reply."""
    for _ in range(10):
        await asyncio.sleep(0)


async def send(remote: RemotePredictor, *texts: str, **options: Any) -> asyncio.Task[PredictionBatch]:
    task = asyncio.create_task(remote.predict([Item(text) for text in texts], **options))
    await run_pending_tasks()
    return task


def labels(batch: PredictionBatch) -> list[str]:
    return [fakes.label_or_code(outcome) for outcome in batch.outcomes]


async def fill_calls(remote: RemotePredictor, handle: Handle) -> list[asyncio.Task[PredictionBatch]]:
    """Start as many calls as the bound allows, with one text each."""
    return [await send(remote, f"busy {index}") for index in range(CALLS_PER_REPLICA * handle.replicas)]


async def problem(task: asyncio.Task[PredictionBatch]) -> Problem:
    with pytest.raises(Problem) as raised:
        await asyncio.wait_for(task, TIMEOUT_S)
    return raised.value
