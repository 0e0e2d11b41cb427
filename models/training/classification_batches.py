"""The batches of a classifier's training run: rows with their tokens, in the order in which they are seen."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.augmentation.epochs import add_noise, make_epoch
from models.data.classification import Dataset, Example
from models.tasks import Task
from models.text.encoding import Encoding, collate
from models.text.tokenizer import Tokenizer
from models.training.trainer import TrainingConfig, batch_by_length


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationConfig(TrainingConfig):
    """The settings of a training run for a task with fixed labels.

    `augment` and `hidden` are as in `make_epoch`. A share `noised` of the rows is read with noise. A share `twins` is
    read twice, as it stands and with noise; `agreement` weighs the loss that makes the two answers agree. With
    `source_bias` each source has a bias, see `SourceBias`. `reading` is as in `Tokenizer`.
    A `quantized` network rounds as the served graph does. `compiled` needs a C++ compiler.
    """

    task: str
    augment: float
    datasets: tuple[Dataset, ...]
    hidden: float = 0.0
    noised: float = 0.0
    twins: float = 0.0
    agreement: float = 0.0
    source_bias: bool = False
    reading: int = 0
    quantized: bool = False
    compiled: bool = False


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A tokenised training row. `targets` and `label_choices` are masks (labels,) of its labels and their alternatives.

    A row without a label is for distillation alone. `source` is the index of its data set. `twin` is the same text with
    noise. `answer` are the teachers' log probabilities (labels,), where they are known.
    """

    tokens: Encoding
    targets: tuple[bool, ...]
    label_choices: tuple[bool, ...]
    smoothing: float = 0.0
    bootstrap: float = 0.0
    absent_share: float = 0.0
    source: int = 0
    twin: Encoding | None = None
    answer: NDArray[np.float32] | None = None


AnswerLookup = Callable[[str, str | None], NDArray[np.float32] | None]
"""Returns the teachers' log probabilities (labels,) of a text with its entity, None if they do not know it."""


def plan_batches(
    config: ClassificationConfig,
    datasets: Sequence[Dataset],
    task: Task,
    tokenizer: Tokenizer,
    training: Sequence[Example],
    lookup: AnswerLookup | None = None,
) -> list[list[TrainingRow]]:
    """Return every batch of the whole run, in order. Each holds rows of all genres, as far as they go."""
    batches: list[list[TrainingRow]] = []
    sources = {dataset.name: index for index, dataset in enumerate(datasets)}
    for epoch in range(ceil(config.epochs)):
        rng = random.Random(config.seed + epoch)
        by_genre: dict[str, list[TrainingRow]] = {dataset.genre: [] for dataset in datasets}
        for example in make_epoch(training, datasets, config.seed, epoch, config.augment, config.hidden):
            source = sources[example.dataset]
            row = make_row(config, datasets[source], source, task, tokenizer, example, rng)
            if lookup is not None:
                row = replace(row, answer=lookup(example.text, example.entity))
            by_genre[datasets[source].genre].append(row)
        epoch_batches = mix_genres([rows for rows in by_genre.values() if rows], config, rng)
        batches += epoch_batches[: round(min(1.0, config.epochs - epoch) * len(epoch_batches))]
    return batches


def make_row(
    config: ClassificationConfig,
    dataset: Dataset,
    source: int,
    task: Task,
    tokenizer: Tokenizer,
    example: Example,
    rng: random.Random,
) -> TrainingRow:
    """Return the row of an example, perhaps with noise, or with a twin that has noise."""
    text, twin, draw = example.text, None, rng.random()
    if draw < config.noised + config.twins:
        noisy = add_noise(example, rng)
        if draw < config.noised:
            text = noisy
        else:
            twin = tokenizer.encode(noisy, example.entity)
    return TrainingRow(
        tokenizer.encode(text, example.entity),
        tuple(label in example.labels for label in task.labels),
        tuple(label in example.alternatives for label in task.labels),
        dataset.smoothing,
        dataset.bootstrap,
        dataset.absent_share,
        source,
        twin,
    )


def mix_genres(
    by_genre: Sequence[Sequence[TrainingRow]], config: ClassificationConfig, rng: random.Random
) -> list[list[TrainingRow]]:
    """Return batches that hold rows of each genre, similar in length within the genre.

    A genre that has fewer batches than another is spread evenly over them.
    """
    parts = [batch_by_length(rows, config, rng, len(by_genre)) for rows in by_genre]
    count = max(len(part) for part in parts)
    mixed: list[list[TrainingRow]] = [[] for _ in range(count)]
    for part in parts:
        for index, batch in enumerate(part):
            mixed[index * count // len(part)] += batch
    return mixed


def collate_rows(rows: Sequence[TrainingRow], tokenizer: Tokenizer) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ids, mask and types of the rows, each (rows, length)."""
    batch = collate([row.tokens for row in rows], tokenizer.pad_id)
    return torch.from_numpy(batch.ids), torch.from_numpy(batch.mask), torch.from_numpy(batch.token_types)
