"""What each task answers: its labels, its token limit and the figure it is judged by.

Knows nothing of networks, files or the wire.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Task:
    """`ordered`: the labels lie on one axis, in their order, so that one score decides among all of them."""

    name: str
    labels: tuple[str, ...]
    ordered: bool
    max_tokens: int
    headline_metric: str


SENTIMENT = Task(
    "sentiment", ("negative", "neutral", "positive"), ordered=True, max_tokens=512, headline_metric="macro_f1"
)

TASKS = {task.name: task for task in (SENTIMENT,)}
