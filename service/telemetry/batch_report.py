"""The cost of one call of the model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchReport:
    """The sizes and times of one call of the model."""

    queued_s: tuple[float, ...]  # one per text
    tokens: int  # without padding
    padded_tokens: int
    infer_s: float
