"""The polarity of a text from its label probabilities."""

from __future__ import annotations

from collections.abc import Mapping


def polarity(scores: Mapping[str, float]) -> float:
    """Return P(positive) - P(negative), from -1 to 1."""
    return scores["positive"] - scores["negative"]
