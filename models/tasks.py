"""What each task answers: its labels where they are fixed, its token limit and the figure it is judged by.

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

INTENT = Task("intent", (), max_tokens=128, headline_metric="accuracy")
"""Its bundle gives vectors; the intents are those of the heads, and the replies those of a file or a request.

Dialogues are read up to 128 tokens, near the 96 of training: at 256 the reply that was given is first among those
offered in 0.77 of cases, at 128 in 0.83.
"""

RECOMMEND = Task("recommend", (), max_tokens=64, headline_metric="ndcg_at_10")
"""Its bundle gives vectors of items' texts, and has the history model beside them."""

TASKS = {task.name: task for task in (SENTIMENT, INTENT, RECOMMEND)}
