"""The gateway's interface to a model, wherever the model runs: items in, one outcome per item out.

`inference.engine.Engine` answers in this process and `cluster.remote.RemotePredictor` across one hop. The gateway does
not know which of them it has. Inputs and outputs are plain frozen data that can be pickled. The module does not know
HTTP, Ray or batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.text.tokenizer import Turn
from service.errors import Problem


@dataclass(frozen=True, slots=True)
class Item:
    """A text, possibly with an entity to judge, or the newest turn of a dialogue after the turns in `context`."""

    text: str
    entity: str | None = None
    context: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """The outcome of an item that was answered.

    `turns` counts the turns of a dialogue that were read, the newest included. `language` is that of the newest.
    """

    tokens: int
    truncated: bool
    turns: int
    language: str = field(default="en", kw_only=True)


@dataclass(frozen=True, slots=True)
class Classification(Prediction):
    """The prediction of a model with fixed labels; `scores` are calibrated probabilities by label that sum to 1."""

    scores: dict[str, float]

    @property
    def label(self) -> str:
        """The label with the highest score."""
        return max(self.scores, key=self.scores.__getitem__)


@dataclass(frozen=True, slots=True)
class UnnamedEntity(Prediction):
    """The outcome of an item whose text does not name its entity. The model did not run, so `tokens` is 0."""


@dataclass(frozen=True, slots=True)
class Embedding(Prediction):
    """The prediction of a model that returns vectors, (width,)."""

    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Timings:
    """The times of a request. Queue and infer belong to the text that was answered last, so the three add up.

    Across a hop, queue is everything but tokenising and inferring: gathering and both ways count as waiting.
    """

    tokenize_s: float
    queue_s: float
    infer_s: float


@dataclass(frozen=True, slots=True)
class PredictionBatch:
    """One outcome per item, in order, with the times."""

    outcomes: tuple[Prediction | Problem, ...]
    timings: Timings


class Predictor(Protocol):
    """A model that answers items. Call `start` in the event loop that calls `predict`.

    `stop` refuses new items and finishes the accepted ones. `ready` is whether it would answer now, and `healthy`
    whether this process should go on.
    """

    @property
    def bundle(self) -> Bundle: ...

    @property
    def ready(self) -> bool: ...

    @property
    def healthy(self) -> bool: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def predict(
        self, items: Sequence[Item], truncate: bool = True, deadline_s: float = float("inf")
    ) -> PredictionBatch:
        """Return the outcomes of the items by `deadline_s` on the monotonic clock.

        Cancelling withdraws the items that have not reached the model.

        Raises:
            Problem: Something is wrong with the whole request.
        """
        ...
