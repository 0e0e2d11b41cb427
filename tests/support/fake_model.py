"""A model whose answers follow from the texts, for tests of the code around a model.

The tokenizer is a real one with one token per word. The runtime answers by the first word: "good", "bad" or another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import models, pre_tokenizers

from models.bundle import Bundle, Metric
from models.prediction.calibration import LogitScaling
from models.tasks import SENTIMENT
from models.text.encoding import Batch
from models.text.tokenizer import Tokenizer
from service.errors import Problem
from service.inference.batch_policy import BatchLimits
from service.inference.engine import Engine
from service.inference.predictor import Classification, Prediction
from service.telemetry.metrics import Metrics

VOCABULARY = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3, "good": 4, "bad": 5, "poison": 6, "nan": 7, "fine": 8}
LIMITS = BatchLimits(batch_tokens=2048, batch_items=16, queue_tokens=65_536)


def write_tokenizer_file(folder: Path) -> Path:
    raw = RawTokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def make_bundle(folder: Path) -> Bundle:
    return Bundle(
        path=folder,
        name="sentiment",
        version="1.2.3",
        task=SENTIMENT,
        languages=("en", "zh"),
        max_tokens=SENTIMENT.max_tokens,
        base="tiny",
        base_digest="0" * 64,
        calibration={language: LogitScaling(1.0, 0.0, (0.0, 0.0, 0.0)) for language in ("en", "zh")},
        sources=(),
        metrics=(Metric("headlines", "en", "macro_f1", 0.9, "heed evaluate"),),
        digest="f" * 64,
        encoder_digest="e" * 64,
        model_digest="d" * 64,
    )


def label_or_code(outcome: Prediction | Problem) -> str:
    """Return the label of a prediction, or the code of a problem."""
    if isinstance(outcome, Problem):
        return outcome.code
    assert isinstance(outcome, Classification)
    return outcome.label


class FakeRuntime:
    """A runtime with logits by the first word. A text with "poison" fails its whole batch, as in a real runtime.

    It waits while `gate` is closed, and sets `entered` when a batch arrives.
    """

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.on_run: Callable[[Batch], None] | None = None

    def run(self, batch: Batch) -> NDArray[np.float32]:
        self.entered.set()
        self.gate.wait(60)
        self.batches.append(batch)
        if self.on_run:
            self.on_run(batch)
        if (batch.ids == VOCABULARY["poison"]).any():
            raise RuntimeError("secret text of the runtime")
        return np.array([self._row(int(ids[1])) for ids in batch.ids], dtype=np.float32)

    def _row(self, word: int) -> list[float]:
        if word == VOCABULARY["nan"]:
            return [float("nan")] * 3
        return [4.0 * (word == VOCABULARY["bad"]), 1.0, 4.0 * (word == VOCABULARY["good"])]


def make_engine(
    folder: Path,
    metrics: Metrics,
    runtime: FakeRuntime,
    limits: BatchLimits = LIMITS,
    *,
    bundle: Bundle | None = None,
    tokenizer: Tokenizer | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Engine:
    return Engine(
        bundle or make_bundle(folder),
        tokenizer or Tokenizer(write_tokenizer_file(folder), SENTIMENT.max_tokens),
        runtime,
        limits,
        metrics.task("sentiment"),
        clock,
    )
