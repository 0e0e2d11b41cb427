"""What is asked of explanations, and what comes out: plain frozen data. Knows nothing of HTTP, threads or runtimes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.explain.methods import HistoryMethod, MethodName
from service.errors import Problem
from service.inference.predictor import Prediction

if TYPE_CHECKING:
    from models.explain.explainer import Explainer, Explanation
    from models.explain.instance import Instance


InstanceFactory = Callable[["Explainer"], "Instance"]
"""One item's question, made in that thread; raises EmptyTextError."""

Reduce = Literal["mean", "rollout"]


class ExplanationCancelled(Exception):
    """Nobody waits for this explanation any more."""


@dataclass(frozen=True, slots=True)
class ExplanationRequest:
    """What is asked of every item. The method is the best one where none is named; no heads are all of them.

    Maps are shown of `layers`, reduced to one where `reduce` says so; a rollout is through all layers. `most_numbers`
    bounds all maps that come back together; `pointer` is to what they are of.
    """

    method: MethodName | None = None
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] | None = None
    reduce: Reduce | None = None
    max_numbers: int = 0
    pointer: str = "/inputs"

    @property
    def maps(self) -> bool:
        return bool(self.layers) or self.reduce is not None


@dataclass(frozen=True, slots=True)
class Attention:
    """`weights` (layers, heads, tokens, tokens): the share that each token (third axis) takes from each (fourth).

    Reduced, there is one map: (1, 1, tokens, tokens). They are rounded to four places.
    """

    model_layers: int
    model_heads: int
    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    reduce: Reduce | None
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TextExplanation(Prediction):
    """`row` is what the runtime gave for all that was read: logits, or a vector."""

    explanation: Explanation
    row: NDArray[np.float32]
    attention: Attention | None


@dataclass(frozen=True, slots=True)
class ItemWeight:
    """Of one item of a history; `events` are places among the events that were read."""

    events: tuple[int, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class HistoryExplanation:
    """`place` is that of the item explained, among a question's candidates or as a row of the catalogue.

    Weights are in the order in which the items came first.
    """

    position: int
    score: float
    method: HistoryMethod
    weights: tuple[ItemWeight, ...]


Outcome = TextExplanation | Problem
AnyExplanation = TypeVar("AnyExplanation", TextExplanation, HistoryExplanation)


@dataclass(frozen=True, slots=True)
class ExplanationBatch(Generic[AnyExplanation]):
    """One outcome per item, in order."""

    outcomes: tuple[AnyExplanation | Problem, ...]
    queue_s: float
    explain_s: float
