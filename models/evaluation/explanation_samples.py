"""Questions of validation rows, as the service would be asked them: what explanations are measured on.

Knows the data sets of each task and how its answers come about; nothing of how words are weighed.
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
"""Whose answers are explained; intents and replies come from one bundle."""

Row = TypeVar("Row")
InstancesBySet = tuple[str, Iterator[Instance]]
"""A data set's name, and the questions of its rows in random order, the same every time."""

Change = Callable[[str, str | None], str]
"""What is done to a text, or to the newest turn of a dialogue, before it is asked about; given the entity as well."""


def unchanged(text: str, entity: str | None) -> str:
    return text


def texts(
    explainer: Explainer, data: Path, datasets: Iterable[Dataset], change: Change = unchanged
) -> Iterator[InstancesBySet]:
    for dataset in datasets:
        rows = shuffled(read_dataset(data, dataset, "validation"))
        yield dataset.name, (explainer.text_instance(change(row.text, row.entity), row.entity) for row in rows)


def intents(
    explainer: Explainer,
    data: Path,
    sources: Iterable[LabelSet],
    heads: Mapping[str, IntentHead],
    change: Change = unchanged,
) -> Iterator[InstancesBySet]:
    """Of what is in scope, by the bundle's own head of each set."""
    for source in sources:
        if source.name in heads:
            rows = [row for row in read_utterances(data, source, "validation") if row.label is not None]
            head = heads[source.name]
            yield source.name, (explainer.intent_instance(newest(row.turns, change), head) for row in shuffled(rows))


def replies(
    explainer: Explainer, data: Path, sources: Iterable[ReplySet], ranker: ReplyRanker, change: Change = unchanged
) -> Iterator[InstancesBySet]:
    """Of the reply that scores best among those that the agent was offered."""
    for source in sources:
        rows = [row for row in read_reply_examples(data, source, "validation") if len(row.options) > 1]
        if rows:
            yield (
                source.name,
                (
                    explainer.reply_instance(
                        newest(row.turns, change),
                        ranker,
                        row.options,
                        ranker.project_replies(explainer.vectors(row.options)),
                    )
                    for row in shuffled(rows)
                ),
            )


def recommendations(bundle: Bundle, data: Path) -> Iterator[tuple[str, Iterator[HistoryInstance]]]:
    """Of the item that is ranked first, among all, after what a user of Online Retail did before the last basket."""
    recommender, (_, _, vectors), split = load_recommender(bundle), load_own_catalogue(bundle), load_held_out(data)
    trained = recommender.cached_training_indices(split.training.ids, vectors)

    def first(row: int) -> HistoryInstance:
        history = history_of(split.histories[row], split.training.kind, vectors, trained)
        best = int(recommender.rank(history, vectors, np.arange(len(vectors)), 1, trained=trained).order[0])
        return make_history_instance(recommender, history, vectors[best], best, int(trained[best]))

    yield RETAIL, (first(row) for row in shuffled(range(len(split.users))))


def newest(turns: Sequence[Turn], change: Change) -> tuple[Turn, ...]:
    return (*turns[:-1], replace(turns[-1], text=change(turns[-1].text, None)))


def shuffled(rows: Sequence[Row]) -> list[Row]:
    return random.Random(0).sample(rows, len(rows))
