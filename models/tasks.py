"""What each task answers: its labels, its token limit and the figure it is judged by.

Knows nothing of networks, files or the wire.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Task:
    name: str
    labels: tuple[str, ...]
    max_tokens: int
    headline_metric: str


SENTIMENT = Task("sentiment", ("negative", "neutral", "positive"), max_tokens=512, headline_metric="macro_f1")

TASKS = {task.name: task for task in (SENTIMENT,)}
