"""Instances made from validation rows as the service makes them from requests, for measuring explanations.

Knows the data sets of each task and how its answers are computed. Knows nothing of attribution methods.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np

from models.bundle import Bundle
from models.data.classification import Dataset, read_dataset
from models.data.dialogues import LabelSet, ReplySet, read_reply_examples, read_utterances
from models.data.interactions import RETAIL, load_held_out
from models.evaluation.recommendation import history_of
from models.explain.explainer import Explainer
from models.explain.history import HistoryInstance, make_history_instance
from models.explain.instance import Instance
from models.prediction.intent_head import IntentHead
from models.prediction.reply_ranker import ReplyRanker
from models.ranking.bundle_files import load_own_catalogue, load_recommender
from models.text.tokenizer import Turn

TaskName = Literal["sentiment", "intent", "replies"]
"""A text task whose answers can be explained. Intents and replies share a bundle."""

Row = TypeVar("Row")
InstancesBySet = tuple[str, Iterator[Instance]]
"""The name of a data set, and the instances of its rows in random order. The order is the same in every run."""

Change = Callable[[str, str | None], str]
"""Maps a text, or the newest turn of a dialogue, and its entity to a changed text."""


def unchanged(text: str, entity: str | None) -> str:
    return text


def text_instances(
    explainer: Explainer, data: Path, datasets: Iterable[Dataset], change: Change = unchanged
) -> Iterator[InstancesBySet]:
    """Yield the instances of classified texts."""
    for dataset in datasets:
        rows = shuffled(read_dataset(data, dataset, "validation"))
        yield dataset.name, (explainer.text_instance(change(row.text, row.entity), row.entity) for row in rows)


def intent_instances(
    explainer: Explainer,
    data: Path,
    sources: Iterable[LabelSet],
    heads: Mapping[str, IntentHead],
    change: Change = unchanged,
) -> Iterator[InstancesBySet]:
    """Yield the instances of rows in scope, each with the bundle's head of its label set."""
    for source in sources:
        if source.name in heads:
            rows = [row for row in read_utterances(data, source, "validation") if row.label is not None]
            head = heads[source.name]
            yield (
                source.name,
                (explainer.intent_instance(change_newest_turn(row.turns, change), head) for row in shuffled(rows)),
            )


def reply_instances(
    explainer: Explainer, data: Path, sources: Iterable[ReplySet], ranker: ReplyRanker, change: Change = unchanged
) -> Iterator[InstancesBySet]:
    """Yield the instances of the best-scoring reply among those that the agent was offered."""
    for source in sources:
        rows = [row for row in read_reply_examples(data, source, "validation") if len(row.options) > 1]
        if rows:
            yield (
                source.name,
                (
                    explainer.reply_instance(
                        change_newest_turn(row.turns, change),
                        ranker,
                        row.options,
                        ranker.project_replies(explainer.vectors(row.options)),
                    )
                    for row in shuffled(rows)
                ),
            )


def history_instances(bundle: Bundle, data: Path) -> Iterator[tuple[str, Iterator[HistoryInstance]]]:
    """Yield the instances of the first-ranked item among all, from each user's history before the last basket.

    The users are those of Online Retail.
    """
    recommender, (_, _, vectors), split = load_recommender(bundle), load_own_catalogue(bundle), load_held_out(data)
    trained = recommender.cached_training_indices(split.training.ids, vectors)

    def first_ranked(row: int) -> HistoryInstance:
        history = history_of(split.histories[row], split.training.kind, vectors, trained)
        best = int(recommender.rank(history, vectors, np.arange(len(vectors)), 1, training_indices=trained).order[0])
        return make_history_instance(recommender, history, vectors[best], best, int(trained[best]))

    yield RETAIL, (first_ranked(row) for row in shuffled(range(len(split.users))))


def change_newest_turn(turns: Sequence[Turn], change: Change) -> tuple[Turn, ...]:
    return (*turns[:-1], replace(turns[-1], text=change(turns[-1].text, None)))


def shuffled(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in random order. The order is the same in every run."""
    return random.Random(0).sample(rows, len(rows))
