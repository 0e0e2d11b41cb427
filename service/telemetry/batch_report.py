"""What one model call cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One call of the model, for whoever counts."""

    queued_s: tuple[float, ...]  # one per text
    tokens: int  # without padding
    padded_tokens: int
    infer_s: float
