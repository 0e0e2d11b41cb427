"""Requests for explanations and their results: plain frozen data, independent of HTTP, threads and runtimes."""

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
"""A function that makes the instance of an item, in the explanation thread.

It may raise EmptyTextError or UnnamedEntityError.
"""

Reduce = Literal["mean", "rollout"]


class ExplanationCancelled(Exception):
    """The caller of this explanation no longer waits."""


@dataclass(frozen=True, slots=True)
class ExplanationRequest:
    """The options for all items of a request.

    Without a method, the default is used. Without heads, all heads are. Maps are returned for `layers`, and `reduce`
    combines them into one. A rollout uses all layers. `max_numbers` bounds the size of all maps together, and `pointer`
    points to the field with their texts.
    """

    method: MethodName | None = None
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] | None = None
    reduce: Reduce | None = None
    max_numbers: int = 0
    pointer: str = "/inputs"

    @property
    def wants_maps(self) -> bool:
        """Return whether attention maps are returned."""
        return bool(self.layers) or self.reduce is not None


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention maps: `weights` (layers, heads, tokens, tokens) or, if reduced, (1, 1, tokens, tokens).

    A weight is the share that a token (third axis) takes from another token (fourth axis), rounded to four decimals.
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
    """The explanation of a text or a dialogue. `row` is the runtime's output for it: logits, or a vector."""

    explanation: Explanation
    row: NDArray[np.float32]
    attention: Attention | None


@dataclass(frozen=True, slots=True)
class ItemWeight:
    """The weight of an item in a history. `events` are its indexes among the events that were read."""

    events: tuple[int, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class HistoryExplanation:
    """The explanation of a recommended item.

    `position` is the item's index among the candidates of the query, or its row in the catalogue. Weights are in the
    order of the first events of their items.
    """

    position: int
    score: float
    method: HistoryMethod
    weights: tuple[ItemWeight, ...]


TextOutcome = TextExplanation | Problem
AnyExplanation = TypeVar("AnyExplanation", TextExplanation, HistoryExplanation)


@dataclass(frozen=True, slots=True)
class ExplanationBatch(Generic[AnyExplanation]):
    """One outcome per item, in order, with the times."""

    outcomes: tuple[AnyExplanation | Problem, ...]
    queue_s: float
    explain_s: float
