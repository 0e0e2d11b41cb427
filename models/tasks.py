"""The tasks, each described here and nowhere else: its labels where they are fixed, its token limit, the figure it is
judged by, its shipped bundle and an example of a request.

Knows nothing of networks, files or the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["classification", "embedding"]
"""A classifier's graph gives logits of fixed labels; the others give vectors, which something beside it reads."""


@dataclass(frozen=True, slots=True)
class Task:
    """`folder` is the name of its shipped bundle's folder, `example` the body of a request, as JSON."""

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
"""Its bundle gives vectors; the intents are those of the heads, and the replies those of a file or a request.

Dialogues are read up to 128 tokens, near the 96 of training: at 256 the reply that was given is first among those
offered in 0.77 of cases, at 128 in 0.83.
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
"""Its bundle gives vectors of items' texts, and has the history model beside them."""

TASKS = {task.name: task for task in (SENTIMENT, INTENT, RECOMMEND)}
