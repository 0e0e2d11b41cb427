"""What the gateway asks of a model, wherever it runs: items in, one outcome for each out.

`engine.Engine` answers in this process, `remote.Remote` across one hop; the gateway does not know which it has. What
goes in and comes out is plain frozen data and can be pickled. Knows nothing of HTTP, of Ray or of batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.bundle import Bundle
from models.text.tokenizer import Turn
from service.errors import Problem


@dataclass(frozen=True, slots=True)
class Item:
    """A text, which may be asked about an entity, or which may be the newest turn after those `before` it."""

    text: str
    entity: str | None = None
    context: tuple[Turn, ...] = ()


@dataclass(frozen=True, slots=True)
class Prediction:
    """`turns` is how many of a dialogue were read, its newest included."""

    tokens: int
    truncated: bool
    turns: int


@dataclass(frozen=True, slots=True)
class Classification(Prediction):
    """The answer of a model with fixed labels; `scores` are calibrated probabilities by label and sum to 1."""

    scores: dict[str, float]

    @property
    def label(self) -> str:
        return max(self.scores, key=self.scores.__getitem__)


@dataclass(frozen=True, slots=True)
class Embedding(Prediction):
    """By a model that gives vectors, (width,)."""

    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Timings:
    """Queue and infer are those of the text that was answered last, so that the three add up to the whole.

    Across a hop, queue is all that is neither tokenising nor inferring: gathering and both ways count as waiting.
    """

    tokenize_s: float
    queue_s: float
    infer_s: float


@dataclass(frozen=True, slots=True)
class PredictionBatch:
    """One outcome per item, in order."""

    outcomes: tuple[Prediction | Problem, ...]
    timings: Timings


class Predictor(Protocol):
    """Call `start` in the event loop that calls `predict`; `stop` refuses what is new and finishes what was accepted.

    `ready` is whether it would answer now, `healthy` whether this process should live on.
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
        """The items' outcomes by `deadline_s` on the monotonic clock; raises a Problem that concerns all of them.

        Cancelling withdraws what has not reached the model.
        """
        ...
