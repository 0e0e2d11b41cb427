"""Which ways of weighing can be asked for, task by task: those that `heed faithfulness` measured to be worth it.

A method is offered where the words it weighs most lose the answer at least LEAST_TIMES as much as random ones do, in
the mean over the task's data sets; the tables are in the cards of the bundles. Named here alone, so that schemas, the
command line and errors say the same. Imports nothing, for gateways that explain nothing.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

SentimentMethod = Literal["two_sided_occlusion", "occlusion", "shapley", "integrated_gradients", "value_norm"]
IntentMethod = Literal["two_sided_occlusion", "occlusion", "shapley", "integrated_gradients", "value_norm"]
ReplyMethod = Literal["two_sided_occlusion", "occlusion", "shapley", "integrated_gradients"]
HistoryMethod = Literal["two_sided_occlusion", "occlusion", "shapley", "attention"]
"""Of recommendations."""

ExplainableTask = Literal["sentiment", "intent", "replies", "recommend"]
"""A task whose answers are explained."""

FEATURE_NOUNS: Final[dict[ExplainableTask, str]] = {
    "sentiment": "words",
    "intent": "words",
    "replies": "words",
    "recommend": "items",
}
"""What is weighed."""

SUPPORTED_METHODS: Final[dict[ExplainableTask, tuple[str, ...]]] = {
    "sentiment": get_args(SentimentMethod),
    "intent": get_args(IntentMethod),
    "replies": get_args(ReplyMethod),
    "recommend": get_args(HistoryMethod),
}

MIN_TIMES_RANDOM = 3.0
