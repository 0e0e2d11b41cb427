"""Label probabilities to label, scores and polarity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.tasks import SENTIMENT


@dataclass(frozen=True, slots=True)
class Sentiment:
    """`scores` are calibrated probabilities by label and sum to 1; `polarity` is P(positive) - P(negative)."""

    label: str
    scores: dict[str, float]
    polarity: float


def sentiment(probabilities: Sequence[float]) -> Sentiment:
    """The answer for one text's calibrated probabilities, (labels,)."""
    scores = dict(zip(SENTIMENT.labels, probabilities, strict=True))
    return Sentiment(max(scores, key=scores.__getitem__), scores, scores["positive"] - scores["negative"])
