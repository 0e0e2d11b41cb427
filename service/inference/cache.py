"""Less work: identical texts that are asked at the same time are computed once, and the last answers may be kept.

A predictor in front of another, and the place where every answered text is counted, wherever it was computed. What is
shared is an answer, never a failure: a caller whose fellow ran out of time, went away or failed asks again itself.
Knows nothing of HTTP, of Ray or of where the model runs.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from hashlib import blake2b

from models.bundle import Bundle
from service.errors import DeadlineExceeded, Problem
from service.inference.predictor import Item, Prediction, PredictionBatch, Predictor, Timings
from service.telemetry.metrics import TaskMetrics

_KEY_BYTES = 16
_NOTHING = Timings(0.0, 0.0, 0.0)

Key = bytes
Outcome = Prediction | Problem


class CachedPredictor:
    """Keeps up to `entries` answers of the predictor behind it, the least recently used go first; 0 keeps none.

    Answers belong to one bundle: this is made with its predictor and ends with it.
    """

    def __init__(self, behind: Predictor, entries: int, metrics: TaskMetrics) -> None:
        self._predictor = behind
        self._entries = entries
        self._metrics = metrics
        self._kept: OrderedDict[Key, Prediction] = OrderedDict()
        self._in_flight: dict[Key, asyncio.Future[Prediction | None]] = {}

    @property
    def bundle(self) -> Bundle:
        return self._predictor.bundle

    @property
    def ready(self) -> bool:
        return self._predictor.ready

    @property
    def healthy(self) -> bool:
        return self._predictor.healthy

    async def start(self) -> None:
        await self._predictor.start()

    async def stop(self) -> None:
        await self._predictor.stop()

    async def predict(
        self, items: Sequence[Item], truncate: bool = True, deadline_s: float = float("inf")
    ) -> PredictionBatch:
        """As the predictor behind; what was not computed for this call took no time of tokenising or inference."""
        keys = [key_of(item, truncate) for item in items]
        wanted = dict(zip(keys, items, strict=True))
        kept = self._take(wanted)
        found: dict[Key, Outcome] = dict(kept)
        timings, computed = _NOTHING, 0
        while missing := {key: item for key, item in wanted.items() if key not in found}:
            others = {key: self._in_flight[key] for key in missing if key in self._in_flight}
            if own := {key: item for key, item in missing.items() if key not in others}:
                timings = await self._compute(own, found, truncate, deadline_s)
                computed += sum(isinstance(found[key], Prediction) for key in own)
            if others:
                waited_s = await self._join(others, found, deadline_s)
                timings = timings if own else Timings(0.0, waited_s, 0.0)
        outcomes = tuple(found[key] for key in keys)
        self._count(outcomes, computed, cached=sum(key in kept for key in keys))
        return PredictionBatch(outcomes, timings)

    def _count(self, outcomes: Sequence[Outcome], computed: int, cached: int) -> None:
        answered = sum(isinstance(outcome, Prediction) for outcome in outcomes)
        if cached:
            self._metrics.cached(cached)
        if shared := answered - computed - cached:
            self._metrics.shared(shared)
        self._metrics.outcomes("ok" if isinstance(outcome, Prediction) else outcome.code for outcome in outcomes)

    def _take(self, wanted: Mapping[Key, Item]) -> dict[Key, Prediction]:
        hits = {key: self._kept[key] for key in wanted if key in self._kept}
        for key in hits:
            self._kept.move_to_end(key)
        return hits

    async def _compute(
        self, own: Mapping[Key, Item], found: dict[Key, Outcome], truncate: bool, deadline_s: float
    ) -> Timings:
        loop = asyncio.get_running_loop()
        promises = {key: loop.create_future() for key in own}
        self._in_flight |= promises
        try:
            answer = await self._predictor.predict(list(own.values()), truncate, deadline_s)
            for key, outcome in zip(own, answer.outcomes, strict=True):
                found[key] = outcome
                if isinstance(outcome, Prediction):
                    promises[key].set_result(outcome)
                    self._keep(key, outcome)
            return answer.timings
        finally:
            for key, promise in promises.items():
                del self._in_flight[key]
                if not promise.done():
                    promise.set_result(None)

    async def _join(
        self, others: Mapping[Key, asyncio.Future[Prediction | None]], found: dict[Key, Outcome], deadline_s: float
    ) -> float:
        """Wait for what other callers have under way; what they do not get stays missing."""
        started_s = time.monotonic()
        left_s = None if deadline_s == float("inf") else max(0.0, deadline_s - started_s)
        await asyncio.wait(others.values(), timeout=left_s)
        for key, promise in others.items():
            if not promise.done():
                found[key] = DeadlineExceeded("The text was not reached in time.")
            elif (outcome := promise.result()) is not None:
                found[key] = outcome
        return time.monotonic() - started_s

    def _keep(self, key: Key, outcome: Prediction) -> None:
        if self._entries == 0:
            return
        self._kept[key] = outcome
        if len(self._kept) > self._entries:
            self._kept.popitem(last=False)
        self._metrics.cache_entries(len(self._kept))


def key_of(item: Item, truncate: bool) -> Key:
    """Equal for equal questions: of fixed size, so that a long text costs no more room than a short one."""
    digest = blake2b(b"\x01" if truncate else b"\x00", digest_size=_KEY_BYTES)
    digest.update(len(item.text).to_bytes(8, "big"))
    digest.update(item.text.encode(errors="surrogatepass"))
    if item.entity is not None:
        digest.update(item.entity.encode(errors="surrogatepass") + b"\x01")
    for turn in item.context:
        digest.update(f"\x02{turn.speaker}{len(turn.text)}\x02".encode())
        digest.update(turn.text.encode(errors="surrogatepass"))
    return digest.digest()
