"""One model in this process: texts in, sentiments or vectors out.

text → tokens → batcher → runtime → prediction, nothing calls back. What is wrong with one text is that text's Problem
in the answer; what is wrong with the request, or with the service, is raised. Knows nothing of HTTP or of Ray.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.prediction.calibration import LogitScaling, calibrate_logits
from models.runtime.protocol import Runtime
from models.text.encoding import Encoding, collate
from models.text.language import has_text
from models.text.tokenizer import EmptyTextError, Tokenizer
from service.errors import EmptyText, InferenceFailed, InvalidRequest, NotReady, Problem, TextTooLong
from service.inference.batch_policy import BatchLimits, InferenceResult
from service.inference.batcher import Batcher
from service.inference.predictor import Classification, Embedding, Item, Prediction, PredictionBatch, Timings
from service.telemetry.batch_report import BatchReport

# Beyond either, tokenising would hold up the event loop for more than a few milliseconds.
_INLINE_ITEMS = 16
_INLINE_CHARS = 16_000

_WARM_UP = (
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
    """Who counts what an engine does: the metrics of its process, or what a call carries back to a gateway."""

    def tokenized(self, seconds: float) -> None: ...

    def depth(self, waiting: int) -> None: ...

    def batch(self, report: BatchReport) -> None: ...


class Engine:
    """Call `start` in the event loop that calls `predict`; it returns when the model has answered real shapes."""

    def __init__(
        self, bundle: Bundle, tokenizer: Tokenizer, runtime: Runtime, limits: BatchLimits, metrics: EngineMetrics
    ) -> None:
        self.bundle = bundle
        self.tokenizer = tokenizer
        self._runtime = runtime
        self._metrics = metrics
        limits = replace(limits, text_tokens=bundle.max_tokens)  # what the bundle reads is never refused for its length
        self._batcher: Batcher[Encoding, NDArray[np.floating]] = Batcher(
            self._infer, limits, self._report, metrics.depth, name=f"{bundle.task.name}-inference"
        )
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix=f"{bundle.task.name}-tokenize")
        self._warm = False

    async def start(self) -> None:
        self._batcher.start()
        for texts in _WARM_UP:
            for outcome in await self._batcher.run([self.tokenizer.encode(text) for text in texts]):
                if isinstance(outcome, Problem):
                    raise outcome
        self._warm = True

    async def stop(self) -> None:
        """Refuse what is new, finish what was accepted."""
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
        """Whether any text waits or is being answered."""
        return self._batcher.busy

    async def predict(
        self, items: Sequence[Item], truncate: bool = True, deadline_s: float = float("inf")
    ) -> PredictionBatch:
        """The items' outcomes by `deadline_s` on the monotonic clock; raises NotReady or Overloaded for all of them.

        Cancelling withdraws what has not reached the model.
        """
        if not self.ready:
            raise NotReady("The model is not ready.", retry_after_s=_LOADING_S)
        self._batcher.check(deadline_s)  # before the work of tokenising: an overloaded service refuses most of all
        started_s = time.perf_counter()
        encoded = await self._encode_all(items, truncate)
        tokenize_s = time.perf_counter() - started_s
        self._metrics.tokenized(tokenize_s)
        texts = [item for item in encoded if isinstance(item, _Encoded)]
        inferred = await self._batcher.run([item.tokens for item in texts], deadline_s)
        predicted = iter([self._predicted(*pair) for pair in zip(texts, inferred, strict=True)])
        outcomes = tuple(next(predicted) if isinstance(item, _Encoded) else item for item in encoded)
        return PredictionBatch(outcomes, timings(tokenize_s, inferred))

    async def _encode_all(self, items: Sequence[Item], truncate: bool) -> list[_Encoded | Problem]:
        def encode() -> list[_Encoded | Problem]:
            return [self._encode(item, truncate) for item in items]

        if len(items) <= _INLINE_ITEMS and sum(map(_size, items)) <= _INLINE_CHARS:
            return encode()
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, encode)

    def _encode(self, item: Item, truncate: bool) -> _Encoded | Problem:
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
            return TextTooLong(f"The text is longer than {self.bundle.max_tokens} tokens.", pointer="/text")
        return _Encoded(tokens, turns)

    def _report(self, report: BatchReport) -> None:
        if self._warm:  # what warms up is nobody's text
            self._metrics.batch(report)

    def _infer(self, texts: Sequence[Encoding]) -> NDArray[np.floating]:
        """Calibrated here, a batch at a time: arrays of three numbers cost more than their arithmetic."""
        rows = self._runtime.run(collate(texts, self.tokenizer.pad_id))
        return calibrate_logits(rows, [self._scaling(text) for text in texts]) if self.bundle.task.labels else rows

    def _scaling(self, text: Encoding) -> LogitScaling:
        return self.bundle.scaling(text.language, text.has_entity)

    def _predicted(
        self, encoded: _Encoded, inferred: InferenceResult[NDArray[np.floating]] | Problem
    ) -> Prediction | Problem:
        if isinstance(inferred, Problem):
            return inferred
        if not math.isfinite(inferred.row.sum()):
            return InferenceFailed("The model failed on this text.")
        read = (encoded.tokens.length, encoded.tokens.truncated, encoded.turns)
        if labels := self.bundle.task.labels:
            return Classification(*read, dict(zip(labels, inferred.row.tolist(), strict=True)))
        return Embedding(*read, inferred.row.astype(np.float32, copy=False))


def _size(item: Item) -> int:
    return len(item.text) + sum(len(turn.text) for turn in item.context)


def timings(tokenize_s: float, inferred: Sequence[InferenceResult[Any] | Problem]) -> Timings:
    """Of what was answered last."""
    done = [
        (one.queue_s + one.infer_s, one.queue_s, one.infer_s) for one in inferred if isinstance(one, InferenceResult)
    ]
    _, queue_s, infer_s = max(done, default=(0.0, 0.0, 0.0))
    return Timings(tokenize_s, queue_s, infer_s)
