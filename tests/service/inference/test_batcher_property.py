"""The batcher under random requests: lengths, cancellations, expired deadlines and poisoned texts."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass
from itertools import count

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.text.encoding import Encoding
from service.errors import DeadlineExceeded, InferenceFailed, Overloaded, Problem, TextTooLong
from service.inference.batch_policy import BatchLimits, InferenceResult
from tests.support.batching import POISON, RunningBatcher, running, text

LIMITS = BatchLimits(batch_tokens=64, batch_items=4, queue_tokens=400)


@dataclass(frozen=True, slots=True)
class Request:
    texts: tuple[Encoding, ...]
    expired: bool
    cancelled: bool


@st.composite
def random_requests(draw: st.DrawFn) -> list[Request]:
    numbers = count(1000)
    lengths = st.lists(st.integers(1, LIMITS.batch_tokens + 6), min_size=1, max_size=6)
    poisoned = st.integers(0, 9).map(lambda digit: digit == 0)
    requests = []
    for request_lengths in draw(st.lists(lengths, min_size=1, max_size=14)):
        texts = tuple(text(length, POISON if draw(poisoned) else next(numbers)) for length in request_lengths)
        requests.append(Request(texts, draw(st.booleans()) and draw(st.booleans()), draw(st.booleans())))
    return requests


@settings(max_examples=150, deadline=None)
@given(random_requests(), st.booleans())
def test_every_caller_gets_its_rows_or_the_reason_why_not(requests: list[Request], is_held: bool) -> None:
    asyncio.run(asyncio.wait_for(run_requests(requests, is_held), 60))


async def run_requests(requests: list[Request], is_held: bool) -> None:
    """Run the requests and check their outcomes. If `is_held`, the model waits while they come and go."""
    async with running(LIMITS) as run:
        if is_held:
            run.model.gate.clear()
        past_s = time.monotonic() - 1
        tasks = [run.begin(request.texts, past_s if request.expired else float("inf")) for request in requests]
        await asyncio.sleep(0)
        for request, task in zip(requests, tasks, strict=True):
            if request.cancelled:
                task.cancel()
        run.model.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for request, result in zip(requests, results, strict=True):
            check_result(request, result)
        check_batches(requests, run)
        assert run.batcher.healthy
        assert run.batcher.accepting
    assert run.depths[-1] == 0


def check_result(
    request: Request, result: list[InferenceResult[NDArray[np.float64]] | Problem] | BaseException
) -> None:
    if isinstance(result, BaseException):
        assert isinstance(result, Overloaded) or (request.cancelled and isinstance(result, asyncio.CancelledError))
        return
    for encoding, outcome in zip(request.texts, result, strict=True):
        if encoding.length > LIMITS.batch_tokens:
            assert isinstance(outcome, TextTooLong)
        elif request.expired:
            assert isinstance(outcome, DeadlineExceeded)
        elif encoding.ids[0] == POISON:
            assert isinstance(outcome, InferenceFailed)
        else:
            assert isinstance(outcome, InferenceResult)
            assert outcome.row.tolist() == [encoding.ids[0], encoding.length]


def check_batches(requests: list[Request], run: RunningBatcher) -> None:
    lengths = {int(encoding.ids[0]): encoding.length for request in requests for encoding in request.texts}
    expired = {int(encoding.ids[0]) for request in requests if request.expired for encoding in request.texts} - {POISON}
    for batch in run.model.batches:
        assert len(batch) <= LIMITS.batch_items
        if POISON not in batch:  # several texts share that number
            assert max(lengths[number] for number in batch) * len(batch) <= LIMITS.batch_tokens
    seen = Counter(number for number in run.model.seen if number != POISON)
    assert not expired & seen.keys()
    assert all(times <= 2 for times in seen.values())  # once, and alone after a batch that failed
