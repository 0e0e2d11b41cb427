"""One call from a gateway to a model replica: its data, and how the replica answers it.

A call carries several requests and returns an answer or a problem for each. It also returns what the engine counted
since the last call: a replica has no port to scrape, so the gateways report for it. The data is plain and pickled by
Ray. This module knows neither Ray nor the gateway that called.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import Problem, from_unknown
from service.fairness.client import CLIENT
from service.inference.predictor import Item, PredictionBatch, Predictor
from service.telemetry.batch_report import BatchReport
from service.telemetry.logs import REQUEST_ID

# Reports leave with every response. They pile up only if all callers abandon their calls. Then the newest remain.
_MAX_REPORTS = 4096


@dataclass(frozen=True, slots=True)
class RemoteRequest:
    """The items of one request, with its remaining seconds, because the clocks of two nodes are unrelated."""

    items: tuple[Item, ...]
    truncate: bool
    remaining_s: float
    request_id: str = ""
    client: str = ""


@dataclass(frozen=True, slots=True)
class EngineCounts:
    """The engine's work since the last response, for any caller."""

    batches: tuple[BatchReport, ...]
    tokenized_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RemoteResponse:
    """The answers to all requests of a call."""

    answers: tuple[PredictionBatch | Problem, ...]  # one per request, in order
    counts: EngineCounts
    digest: str  # of the bundle that answered


class CountBuffer:
    """Collects an engine's counts until a response takes them."""

    def __init__(self) -> None:
        self._batches: deque[BatchReport] = deque(maxlen=_MAX_REPORTS)
        self._tokenized_s: deque[float] = deque(maxlen=_MAX_REPORTS)

    def record_tokenization(self, seconds: float) -> None:
        self._tokenized_s.append(seconds)

    def set_depth(self, waiting: int) -> None:
        """Ignore the depth, which would be outdated on arrival. Time in the queue shows what waits here."""

    def record_batch(self, report: BatchReport) -> None:
        self._batches.append(report)

    def take(self) -> EngineCounts:
        """Return the counts and start again from nothing."""
        counts = EngineCounts(tuple(self._batches), tuple(self._tokenized_s))
        self._batches.clear()
        self._tokenized_s.clear()
        return counts


async def answer_requests(model: Predictor, counts: CountBuffer, requests: Sequence[RemoteRequest]) -> RemoteResponse:
    """Answer all requests together, so that the model's batcher merges them. A fault in one affects no other."""
    answers = await asyncio.gather(*(_answer(model, request) for request in requests))
    return RemoteResponse(tuple(answers), counts.take(), model.bundle.digest)


async def _answer(model: Predictor, request: RemoteRequest) -> PredictionBatch | Problem:
    REQUEST_ID.set(request.request_id)  # of this task alone
    CLIENT.set(request.client)
    try:
        return await model.predict(request.items, request.truncate, time.monotonic() + request.remaining_s)
    except Problem as problem:
        return problem
    except Exception as error:  # raised, it would fail the other requests, and its message would leave the replica
        return from_unknown(error)
