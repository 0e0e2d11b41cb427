"""The engine: one model in this process, with texts in and class scores or vectors out.

The path is text → tokens → batcher → runtime → prediction, and control never returns to an earlier step. A fault of
one text is that text's Problem in the answer. A fault of the request or of the service is raised. The module does not
know HTTP or Ray.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import structlog
from numpy.typing import NDArray

from models.bundle import Bundle
from models.prediction.calibration import LogitScaling, calibrate_logits
from models.runtime.protocol import Runtime
from models.text.encoding import Encoding, collate
from models.text.language import OTHER, has_text
from models.text.tokenizer import EmptyTextError, Tokenizer
from service.errors import EmptyText, InferenceFailed, InvalidRequest, NotReady, Problem, TextTooLong
from service.inference.batch_policy import BatchLimits, InferenceResult
from service.inference.batcher import Batcher
from service.inference.predictor import (
    Classification,
    Embedding,
    Item,
    Prediction,
    PredictionBatch,
    Timings,
    UnnamedEntity,
)
from service.telemetry.batch_report import BatchReport

_log = structlog.get_logger(__name__)

# Beyond either, tokenising would block the event loop for more than a few milliseconds.
_MAX_INLINE_ITEMS = 16
_MAX_INLINE_CHARS = 16_000

_MAX_TOKEN_CHARS = 8  # of an average token in a usual text

_WARM_UP_BATCHES = (
    ("ok",),
    ("Shares of Acme plunge after profit warning", "公司利润大增，股价上涨") * 4,
    ("up and down " * 600,),
)
_LOADING_S = 2.0


@dataclass(frozen=True, slots=True)
class _Encoded:
    tokens: Encoding
    turns: int


class EngineMetrics(Protocol):
    """The receiver of an engine's counts: the metrics of its process, or a buffer that a call returns to a gateway."""

    def record_tokenization(self, seconds: float) -> None: ...

    def set_depth(self, waiting: int) -> None: ...

    def record_batch(self, report: BatchReport) -> None: ...


class Engine:
    """A tokenizer, a runtime and a batcher for one bundle.

    Call `start` in the event loop that calls `predict`. It returns when the model has answered inputs of real shapes.
    """

    def __init__(
        self,
        bundle: Bundle,
        tokenizer: Tokenizer,
        runtime: Runtime,
        limits: BatchLimits,
        metrics: EngineMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bundle = bundle
        self.tokenizer = tokenizer
        self._runtime = runtime
        self._metrics = metrics
        limits = replace(
            limits, text_tokens=bundle.max_tokens
        )  # no text that the bundle can read is refused as too long
        self._batcher: Batcher[Encoding, NDArray[np.floating]] = Batcher(
            self._infer, limits, self._report, metrics.set_depth, name=f"{bundle.task.name}-inference", clock=clock
        )
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix=f"{bundle.task.name}-tokenize")
        self._warm = False

    async def start(self) -> None:
        self._batcher.start()
        for texts in _WARM_UP_BATCHES:
            for outcome in await self._batcher.run([self.tokenizer.encode(text) for text in texts]):
                if isinstance(outcome, Problem):
                    raise outcome
        self._warm = True

    async def stop(self) -> None:
        """Refuse new items and finish the accepted ones."""
        await self._batcher.stop()
        self._tokenizing.shutdown()

    @property
    def ready(self) -> bool:
        return self._warm and self._batcher.accepting

    @property
    def healthy(self) -> bool:
        return self._batcher.healthy

    @property
    def busy(self) -> bool:
        """Return whether any text waits or runs."""
        return self._batcher.busy

    async def predict(
        self, items: Sequence[Item], truncate: bool = True, deadline_s: float = float("inf")
    ) -> PredictionBatch:
        """Return the outcomes of the items by `deadline_s` on the monotonic clock.

        Cancelling withdraws the items that have not reached the model.

        Raises:
            NotReady: The engine has not started or has stopped.
            Overloaded: The items would wait too long, or the queue is full.
        """
        if not self.ready:
            raise NotReady("The model is not ready.", retry_after_s=_LOADING_S)
        if self.busy:  # before tokenising: an overloaded service refuses most requests
            self._batcher.check(deadline_s, self._least_tokens(items))
        started_s = time.perf_counter()
        encoded = await self._encode_all(items, truncate)
        tokenize_s = time.perf_counter() - started_s
        self._metrics.record_tokenization(tokenize_s)
        texts = [item for item in encoded if isinstance(item, _Encoded)]
        inferred = await self._batcher.run([item.tokens for item in texts], deadline_s)
        predictions = iter([self._make_prediction(*pair) for pair in zip(texts, inferred, strict=True)])
        outcomes = tuple(next(predictions) if isinstance(item, _Encoded) else item for item in encoded)
        return PredictionBatch(outcomes, _make_timings(tokenize_s, inferred))

    async def _encode_all(self, items: Sequence[Item], truncate: bool) -> list[_Encoded | Prediction | Problem]:
        def encode() -> list[_Encoded | Prediction | Problem]:
            return [self._encode(item, truncate) for item in items]

        if len(items) <= _MAX_INLINE_ITEMS and sum(map(_count_characters, items)) <= _MAX_INLINE_CHARS:
            return encode()
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, encode)

    def _least_tokens(self, items: Sequence[Item]) -> int:
        """Return fewer tokens than the items probably have."""
        return sum(min(self.bundle.max_tokens, _count_characters(item) // _MAX_TOKEN_CHARS) for item in items)

    def _encode(self, item: Item, truncate: bool) -> _Encoded | Prediction | Problem:
        """Return the tokens of an item, or its outcome if the model has nothing to answer."""
        if item.entity is not None and not has_text(item.entity):
            return InvalidRequest("The entity is empty.", pointer="/entity")
        try:
            if item.context:
                tokens, turns = self.tokenizer.encode_dialogue(item.text, item.context)
            else:
                tokens, turns = self.tokenizer.encode(item.text, item.entity), 1
        except EmptyTextError:
            return EmptyText("The text holds nothing that can be read.", pointer="/text")
        if tokens.truncated and not truncate:
            return self._too_long(item)
        if not tokens.names_entity:
            return UnnamedEntity(0, tokens.truncated, turns, language=_language_of(tokens))
        return _Encoded(tokens, turns)

    def _too_long(self, item: Item) -> TextTooLong:
        tokens, is_all = self.tokenizer.count_tokens(item.text)
        length = str(tokens) if is_all else f"more than {tokens}"
        limit = f"{self.bundle.max_tokens}{' with its entity' if item.entity is not None else ''}"
        return TextTooLong(f"The text has {length} tokens, and the limit is {limit}.", pointer="/text")

    def _report(self, report: BatchReport) -> None:
        if self._warm:  # texts of the warm-up are not counted
            self._metrics.record_batch(report)

    def _infer(self, texts: Sequence[Encoding]) -> NDArray[np.floating]:
        """Return the calibrated rows of a batch.

        The whole batch is calibrated here, because separate arrays of three numbers cost more than their arithmetic.
        """
        rows = self._runtime.run(collate(texts, self.tokenizer.pad_id))
        return calibrate_logits(rows, [self._scaling(text) for text in texts]) if self.bundle.task.labels else rows

    def _scaling(self, text: Encoding) -> LogitScaling:
        return self.bundle.scaling(text.language, text.has_entity)

    def _make_prediction(
        self, encoded: _Encoded, inferred: InferenceResult[NDArray[np.floating]] | Problem
    ) -> Prediction | Problem:
        if isinstance(inferred, Problem):
            return inferred
        if not math.isfinite(inferred.row.sum()):
            _log.error("the model returned a value that is not finite", task=self.bundle.task.name)
            return InferenceFailed("The model failed on this text.")
        extent = (encoded.tokens.length, encoded.tokens.truncated, encoded.turns)
        language = _language_of(encoded.tokens)
        if labels := self.bundle.task.labels:
            scores = dict(zip(labels, inferred.row.tolist(), strict=True))
            return Classification(*extent, scores, language=language)
        return Embedding(*extent, inferred.row.astype(np.float32, copy=False), language=language)


def _language_of(tokens: Encoding) -> str:
    return OTHER if tokens.is_foreign else tokens.language


def _count_characters(item: Item) -> int:
    return len(item.text) + sum(len(turn.text) for turn in item.context)


def _make_timings(tokenize_s: float, inferred: Sequence[InferenceResult[Any] | Problem]) -> Timings:
    """Return the timings of the text that was answered last."""
    results = [result for result in inferred if isinstance(result, InferenceResult)]
    times = [(result.queue_s + result.infer_s, result.queue_s, result.infer_s) for result in results]
    _, queue_s, infer_s = max(times, default=(0.0, 0.0, 0.0))
    return Timings(tokenize_s, queue_s, infer_s)
