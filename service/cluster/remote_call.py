"""One call from a gateway to a model replica: what goes, what comes back, and how the replica answers it.

A call carries parts of several requests and comes back with an answer or a problem for each, and with what the engine
has counted meanwhile: a replica has no port to be scraped at, so the gateways report for it. Plain data, pickled by
Ray; knows neither Ray nor which gateway asked.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import Problem, from_unknown
from service.inference.predictor import Item, PredictionBatch, Predictor
from service.telemetry.batch_report import BatchReport

# Reports leave with every reply. Only when all callers give up on their calls can they pile up, and then the newest do.
_KEPT = 4096


@dataclass(frozen=True, slots=True)
class RemoteRequest:
    """One request's items, with the seconds they have left: the clocks of two nodes have nothing in common."""

    items: tuple[Item, ...]
    truncate: bool
    remaining_s: float


@dataclass(frozen=True, slots=True)
class EngineCounts:
    """What the engine did since the last reply, whoever had asked for it."""

    batches: tuple[BatchReport, ...]
    tokenized_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class RemoteResponse:
    answers: tuple[PredictionBatch | Problem, ...]  # one per part, in order
    counts: EngineCounts
    digest: str  # of the bundle that answered


class CountBuffer:
    """Keeps what an engine counts until a reply takes it away."""

    def __init__(self) -> None:
        self._batches: deque[BatchReport] = deque(maxlen=_KEPT)
        self._tokenized_s: deque[float] = deque(maxlen=_KEPT)

    def record_tokenization(self, seconds: float) -> None:
        self._tokenized_s.append(seconds)

    def set_depth(self, waiting: int) -> None:
        """Not carried: it would be old when it arrived. What waits here is seen as time in the queue."""

    def record_batch(self, report: BatchReport) -> None:
        self._batches.append(report)

    def take(self) -> EngineCounts:
        taken = EngineCounts(tuple(self._batches), tuple(self._tokenized_s))
        for kept in (self._batches, self._tokenized_s):
            kept.clear()
        return taken


async def answer_requests(model: Predictor, tally: CountBuffer, parts: Sequence[RemoteRequest]) -> RemoteResponse:
    """All parts at once, so that the model's batcher merges them; what is wrong with one is that part's alone."""
    answers = await asyncio.gather(*(_answer(model, part) for part in parts))
    return RemoteResponse(tuple(answers), tally.take(), model.bundle.digest)


async def _answer(model: Predictor, part: RemoteRequest) -> PredictionBatch | Problem:
    try:
        return await model.predict(part.items, part.truncate, time.monotonic() + part.remaining_s)
    except Problem as problem:
        return problem
    except Exception as error:  # raised, it would fail the parts of others and cross over with its message
        return from_unknown(error)
