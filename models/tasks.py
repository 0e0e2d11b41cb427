"""The tasks, each described here and nowhere else.

A task has its labels if they are fixed, a token limit, a headline metric, a shipped bundle and an example of a request.
Knows nothing of networks, files or the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["classification", "embedding"]
"""The kind of graph: a classifier returns logits of fixed labels, an embedding model returns vectors."""


@dataclass(frozen=True, slots=True)
class Task:
    """A task: `folder` is the name of its shipped bundle's folder, `example` the body of a request as JSON."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    max_tokens: int
    headline_metric: str
    folder: str
    example: str


SENTIMENT = Task(
    name="sentiment",
    kind="classification",
    labels=("negative", "neutral", "positive"),
    max_tokens=512,
    headline_metric="macro_f1",
    folder="sentiment",
    example='{"inputs": "Shares of Acme plunge after profit warning"}',
)

INTENT = Task(
    name="intent",
    kind="embedding",
    labels=(),
    max_tokens=128,
    headline_metric="accuracy",
    folder="intent",
    example='{"inputs": "where is my card?"}',
)
"""The task whose graph returns vectors; intents come from heads, and replies from a file or a request.

Dialogues are encoded up to 128 tokens, near the 96 of training. At that limit the true reply ranks first in 0.83 of
cases, at 256 tokens in 0.77.
"""

RECOMMEND = Task(
    name="recommend",
    kind="embedding",
    labels=(),
    max_tokens=64,
    headline_metric="ndcg_at_10",
    folder="recommend",
    example='{"inputs": {"history": [{"text": "Regency cakestand 3 tier", "event": "purchase"}], "top_k": 5}}',
)
"""The task whose graph returns vectors of items' texts, with the history model in the same bundle."""

TASKS = {task.name: task for task in (SENTIMENT, INTENT, RECOMMEND)}
