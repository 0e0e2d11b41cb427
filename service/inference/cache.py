"""A predictor in front of another that computes identical texts once and may keep the last answers.

Concurrent requests for the same text share one computation. Callers share answers, never failures. If the caller that
computes a text fails, times out or disconnects, the others compute it themselves. Every answered text is counted here,
wherever it was computed. The module does not know HTTP, Ray or where the model runs.
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
_NO_TIME = Timings(0.0, 0.0, 0.0)

_Key = bytes
_Outcome = Prediction | Problem


class CachedPredictor:
    """A cache of at most `max_entries` answers of the predictor behind it; 0 keeps none.

    The least recently used answer is evicted first. Answers belong to one bundle, so the cache lives as long as its
    predictor.
    """

    def __init__(self, predictor: Predictor, max_entries: int, metrics: TaskMetrics) -> None:
        self._predictor = predictor
        self._max_entries = max_entries
        self._metrics = metrics
        self._entries: OrderedDict[_Key, Prediction] = OrderedDict()
        self._in_flight: dict[_Key, asyncio.Future[Prediction | None]] = {}

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
        """Return outcomes as the predictor behind does.

        Items that were not computed for this call add no time of tokenising or inference.
        """
        keys = [cache_key(item, truncate) for item in items]
        items_by_key = dict(zip(keys, items, strict=True))
        hits = self._look_up(items_by_key)
        results: dict[_Key, _Outcome] = dict(hits)
        timings, computed = _NO_TIME, 0
        while missing := {key: item for key, item in items_by_key.items() if key not in results}:
            in_flight = {key: self._in_flight[key] for key in missing if key in self._in_flight}
            if to_compute := {key: item for key, item in missing.items() if key not in in_flight}:
                timings = await self._compute(to_compute, results, truncate, deadline_s)
                computed += sum(isinstance(results[key], Prediction) for key in to_compute)
            if in_flight:
                waited_s = await self._join(in_flight, results, deadline_s)
                timings = timings if to_compute else Timings(0.0, waited_s, 0.0)
        outcomes = tuple(results[key] for key in keys)
        self._count(outcomes, computed, cached=sum(key in hits for key in keys))
        return PredictionBatch(outcomes, timings)

    def _count(self, outcomes: Sequence[_Outcome], computed: int, cached: int) -> None:
        answered = sum(isinstance(outcome, Prediction) for outcome in outcomes)
        if cached:
            self._metrics.count_cached(cached)
        if shared := answered - computed - cached:
            self._metrics.count_shared(shared)
        self._metrics.count_outcomes("ok" if isinstance(outcome, Prediction) else outcome.code for outcome in outcomes)

    def _look_up(self, items_by_key: Mapping[_Key, Item]) -> dict[_Key, Prediction]:
        hits = {key: self._entries[key] for key in items_by_key if key in self._entries}
        for key in hits:
            self._entries.move_to_end(key)
        return hits

    async def _compute(
        self, items_by_key: Mapping[_Key, Item], results: dict[_Key, _Outcome], truncate: bool, deadline_s: float
    ) -> Timings:
        loop = asyncio.get_running_loop()
        promises = {key: loop.create_future() for key in items_by_key}
        self._in_flight |= promises
        try:
            answer = await self._predictor.predict(list(items_by_key.values()), truncate, deadline_s)
            for key, outcome in zip(items_by_key, answer.outcomes, strict=True):
                results[key] = outcome
                if isinstance(outcome, Prediction):
                    promises[key].set_result(outcome)
                    self._store(key, outcome)
            return answer.timings
        finally:
            for key, promise in promises.items():
                del self._in_flight[key]
                if not promise.done():
                    promise.set_result(None)

    async def _join(
        self,
        in_flight: Mapping[_Key, asyncio.Future[Prediction | None]],
        results: dict[_Key, _Outcome],
        deadline_s: float,
    ) -> float:
        """Wait for the computations of other callers and return the seconds waited; their failures stay missing."""
        started_s = time.monotonic()
        remaining_s = None if deadline_s == float("inf") else max(0.0, deadline_s - started_s)
        await asyncio.wait(in_flight.values(), timeout=remaining_s)
        for key, promise in in_flight.items():
            if not promise.done():
                results[key] = DeadlineExceeded("The text was not processed before its deadline.")
            elif (outcome := promise.result()) is not None:
                results[key] = outcome
        return time.monotonic() - started_s

    def _store(self, key: _Key, outcome: Prediction) -> None:
        if self._max_entries == 0:
            return
        self._entries[key] = outcome
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
        self._metrics.set_cache_entries(len(self._entries))


def cache_key(item: Item, truncate: bool) -> _Key:
    """Return a digest that is equal for equal items, of fixed size, so that long texts need no more memory."""
    digest = blake2b(b"\x01" if truncate else b"\x00", digest_size=_KEY_BYTES)
    digest.update(len(item.text).to_bytes(8, "big"))
    digest.update(item.text.encode(errors="surrogatepass"))
    if item.entity is not None:
        digest.update(item.entity.encode(errors="surrogatepass") + b"\x01")
    for turn in item.context:
        digest.update(f"\x02{turn.speaker}{len(turn.text)}\x02".encode())
        digest.update(turn.text.encode(errors="surrogatepass"))
    return digest.digest()
