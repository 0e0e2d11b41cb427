"""The choice of items that run together: pure functions and values, for any work that has a length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Row = TypeVar("Row")


class Sized(Protocol):
    """A text or other work. Its length is its cost, in a unit that all work of a batcher shares."""

    @property
    def length(self) -> int: ...


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """The limits of batches and of the queue."""

    batch_tokens: int  # padded, for batches of several texts: the longest text times the number of texts
    batch_items: int
    queue_tokens: int
    text_tokens: int = 0  # a text of at most this length runs alone, even beyond the budget of a batch
    padding: float = 1.1  # padded over real tokens; on a CPU padding costs more than a larger batch gains


@dataclass(frozen=True, slots=True)
class InferenceResult(Generic[Row]):
    """The model's row for one item, with its times."""

    row: Row
    queue_s: float
    infer_s: float


def next_batch(lengths: Sequence[int], limits: BatchLimits) -> list[int]:
    """Return the ascending positions of the waiting texts to run together; `lengths` are oldest first.

    The oldest is always included, so nothing starves. The texts nearest to it in length join while the padded tokens
    stay within the budget and the padding stays within its bound.
    """
    anchor = lengths[0]
    chosen, longest, total = [0], anchor, anchor
    for position in sorted(range(1, len(lengths)), key=lambda position: abs(lengths[position] - anchor)):
        if len(chosen) == limits.batch_items:
            break
        peak = max(longest, lengths[position])
        padded, real = peak * (len(chosen) + 1), total + lengths[position]
        if padded <= limits.batch_tokens and padded <= real * limits.padding:
            chosen.append(position)
            longest, total = peak, real
    return sorted(chosen)
