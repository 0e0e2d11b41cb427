"""The names of the attribution methods, and the tasks that support each of them.

A task supports a method that `heed faithfulness` measured to be worth it. Without the features that the method ranks
highest, the answer must lose at least MIN_TIMES_RANDOM times as much as without random features. The figure is a mean
over the data sets of the task, and the tables are in the cards of the bundles.

Schemas, command line and errors all take the names from here. The functions are in the table `METHODS` of
`models.explain.attribution`. Imports nothing else, for gateways that explain nothing.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

MethodName = Literal[
    "occlusion", "two_sided_occlusion", "shapley", "integrated_gradients", "value_norm", "rollout", "attention"
]
"""Every method that can be measured on texts, supported by a task or not."""

SentimentMethod = Literal["two_sided_occlusion", "occlusion", "shapley", "integrated_gradients", "value_norm"]
IntentMethod = Literal["two_sided_occlusion", "occlusion", "shapley", "integrated_gradients", "value_norm"]
ReplyMethod = Literal["two_sided_occlusion", "occlusion", "shapley", "integrated_gradients"]
HistoryMethod = Literal["two_sided_occlusion", "occlusion", "shapley", "attention"]
"""The methods for recommendations."""

DEFAULT_METHOD: Final = "two_sided_occlusion"
"""Nearly as faithful as Shapley values, in a fraction of their time."""

ExplainableTask = Literal["sentiment", "intent", "replies", "recommend"]
"""A task whose answers can be explained."""

FEATURE_NOUNS: Final[dict[ExplainableTask, str]] = {
    "sentiment": "words",
    "intent": "words",
    "replies": "words",
    "recommend": "items",
}
"""The features that get a weight."""

SUPPORTED_METHODS: Final[dict[ExplainableTask, tuple[str, ...]]] = {
    "sentiment": get_args(SentimentMethod),
    "intent": get_args(IntentMethod),
    "replies": get_args(ReplyMethod),
    "recommend": get_args(HistoryMethod),
}

MIN_TIMES_RANDOM = 3.0
"""The faithfulness that a supported method has at least, as a multiple of a random ranking's."""
