"""The batcher under whatever comes: random lengths, requests given up, past their deadline, or poisoned."""

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
from tests.service.inference.test_batcher import POISON, Running, running, text

LIMITS = BatchLimits(batch_tokens=64, batch_items=4, queue_tokens=400)


@dataclass(frozen=True, slots=True)
class Request:
    texts: tuple[Encoding, ...]
    expired: bool
    cancelled: bool


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    numbers = count(1000)
    lengths = st.lists(st.integers(1, LIMITS.batch_tokens + 6), min_size=1, max_size=6)
    poisoned = st.integers(0, 9).map(lambda chance: chance == 0)
    found = []
    for given_lengths in draw(st.lists(lengths, min_size=1, max_size=14)):
        texts = tuple(text(length, POISON if draw(poisoned) else next(numbers)) for length in given_lengths)
        found.append(Request(texts, draw(st.booleans()) and draw(st.booleans()), draw(st.booleans())))
    return found


@settings(max_examples=150, deadline=None)
@given(requests(), st.booleans())
def test_every_caller_gets_what_is_his_or_is_told_why_not(plan: list[Request], held: bool) -> None:
    asyncio.run(asyncio.wait_for(drive(plan, held), 60))


async def drive(plan: list[Request], held: bool) -> None:
    """`held`: the model is at its first batch while requests come and go."""
    async with running(LIMITS) as run:
        if held:
            run.model.gate.clear()
        past_s = time.monotonic() - 1
        tasks = [run.begin(one.texts, past_s if one.expired else float("inf")) for one in plan]
        await asyncio.sleep(0)
        for one, task in zip(plan, tasks, strict=True):
            if one.cancelled:
                task.cancel()
        run.model.gate.set()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for one, outcome in zip(plan, ended, strict=True):
            check(one, outcome)
        check_batches(plan, run)
        assert run.batcher.healthy
        assert run.batcher.accepting
    assert run.depths[-1] == 0


def check(request: Request, ended: list[InferenceResult[NDArray[np.float64]] | Problem] | BaseException) -> None:
    if isinstance(ended, BaseException):
        assert isinstance(ended, Overloaded) or (request.cancelled and isinstance(ended, asyncio.CancelledError))
        return
    for own, outcome in zip(request.texts, ended, strict=True):
        if own.length > LIMITS.batch_tokens:
            assert isinstance(outcome, TextTooLong)
        elif request.expired:
            assert isinstance(outcome, DeadlineExceeded)
        elif own.ids[0] == POISON:
            assert isinstance(outcome, InferenceFailed)
        else:
            assert isinstance(outcome, InferenceResult)
            assert outcome.row.tolist() == [own.ids[0], own.length]


def check_batches(plan: list[Request], run: Running) -> None:
    known = {int(one.ids[0]): one.length for request in plan for one in request.texts}
    expired = {int(one.ids[0]) for request in plan if request.expired for one in request.texts} - {POISON}
    for batch in run.model.batches:
        assert len(batch) <= LIMITS.batch_items
        if POISON not in batch:  # several texts have that number
            assert max(known[number] for number in batch) * len(batch) <= LIMITS.batch_tokens
    seen = Counter(number for number in run.model.seen if number != POISON)
    assert not expired & seen.keys()
    assert all(times <= 2 for times in seen.values())  # once, and alone after a batch that failed
