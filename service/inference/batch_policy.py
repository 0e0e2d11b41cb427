"""Which texts run together, and what is told of it: pure functions and values, of all work that has a length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Row = TypeVar("Row")


class Sized(Protocol):
    """A text or other work; its length is what it costs, in any unit that all of a batcher's work is counted in."""

    @property
    def length(self) -> int: ...


@dataclass(frozen=True, slots=True)
class BatchLimits:
    batch_tokens: int  # padded: longest text times number of texts, of several together
    batch_items: int
    queue_tokens: int
    text_tokens: int = 0  # a text of up to so many runs, alone, even where it is beyond the budget of a batch
    padding: float = 1.1  # padded over real tokens; on a CPU padding costs more than a larger batch gains


@dataclass(frozen=True, slots=True)
class InferenceResult(Generic[Row]):
    row: Row  # what the model gave for this text
    queue_s: float
    infer_s: float


def next_batch(lengths: Sequence[int], limits: BatchLimits) -> list[int]:
    """Which of the waiting texts (lengths, oldest first) to run together, as ascending positions.

    The oldest is always in, so nothing starves; then those nearest to it in length join, while the padded tokens stay
    within the budget and the padding within its bound.
    """
    anchor = lengths[0]
    chosen, longest, total = [0], anchor, anchor
    for position in sorted(range(1, len(lengths)), key=lambda p: abs(lengths[p] - anchor)):
        if len(chosen) == limits.batch_items:
            break
        peak = max(longest, lengths[position])
        padded, real = peak * (len(chosen) + 1), total + lengths[position]
        if padded <= limits.batch_tokens and padded <= real * limits.padding:
            chosen.append(position)
            longest, total = peak, real
    return sorted(chosen)
