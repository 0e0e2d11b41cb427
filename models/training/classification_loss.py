"""The loss of a classifier: cross-entropy with source biases, teachers' answers and the agreement of twins."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.data.classification import Dataset, Example, labels_of
from models.networks.encoder import Classifier, SourceBias
from models.networks.student import StatesFunction, compile_states
from models.tasks import Task
from models.training.classification_batches import TrainingRow
from models.training.losses import (
    agreement_loss,
    expectation_regularization,
    masked_cross_entropy,
    soft_target_loss,
)
from models.training.trainer import DeviceCollator

MAX_PADDING = 1.6
"""The longest text of rows that are run together, as a multiple of the shortest."""


def begin_source_bias(datasets: Sequence[Dataset], task: Task, rows: Sequence[Example]) -> SourceBias:
    """Return the biases of the sources before the training, from the labels of its rows.

    Only a source whose labels people gave has one: those of grammars and assumed labels are no annotator's habits.
    """
    counts: dict[str, Counter[str]] = {dataset.name: Counter() for dataset in datasets}
    for row in rows:
        counts[row.dataset].update(row.labels)
    priors = torch.tensor([[1.0 + counts[dataset.name][label] for label in task.labels] for dataset in datasets]).log()
    natural = [() if dataset.fillings or dataset.assumed else labels_of(dataset.labels) for dataset in datasets]
    return SourceBias(torch.tensor([[label in labels for label in task.labels] for labels in natural]), priors)


def split_by_length(rows: Sequence[TrainingRow]) -> Iterator[list[TrainingRow]]:
    """Yield the rows in parts of similar lengths. A batch of several genres would be a third padding."""
    part: list[TrainingRow] = []
    for row in sorted(rows, key=lambda row: row.tokens.length):
        if part and row.tokens.length > MAX_PADDING * part[0].tokens.length + 4:
            yield part
            part = []
        part.append(row)
    yield part


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """The weights of the loss on labels and of the agreement of twins, and the temperature of teachers' answers."""

    labels: float = 1.0
    agreement: float = 0.0
    temperature: float = 1.0


class SupervisedObjective:
    """The loss of a network on labels, on teachers' answers, and on the agreement of its answers to twins."""

    def __init__(
        self, model: Classifier, collator: DeviceCollator, weights: LossWeights = LossWeights(), compiled: bool = False
    ) -> None:
        self._model, self._collator, self._weights = model, collator, weights
        self._states: StatesFunction = compile_states(model.states) if compiled else model.states

    def __call__(self, rows: Sequence[TrainingRow]) -> Tensor:
        losses = [self._loss(part) * (len(part) / len(rows)) for part in split_by_length(rows)]
        return torch.stack(losses).sum()

    def _loss(self, rows: Sequence[TrainingRow]) -> Tensor:
        twins = [row for row in rows if row.twin is not None]
        inputs = self._collator([row.tokens for row in rows] + [row.twin for row in twins if row.twin is not None])
        hidden = self._states(inputs.ids, inputs.mask, inputs.types)[-1]
        logits = self._model.classify(hidden, inputs.mask, inputs.types).float()
        loss = self._weights.labels * labelled_loss(logits, [*rows, *twins], self._model.sources)
        loss = loss + self._answer_loss(logits, [*rows, *twins])
        if twins:
            pairs = [index for index, row in enumerate(rows) if row.twin is not None]
            agreement = agreement_loss(logits[pairs], logits[len(rows) :])
            loss = loss + self._weights.agreement * agreement * len(twins) / len(rows)
        return loss

    def _answer_loss(self, logits: Tensor, rows: Sequence[TrainingRow]) -> Tensor:
        """Return the loss on the answers of teachers, which know no sources; logits (rows, labels)."""
        known = [index for index, row in enumerate(rows) if row.answer is not None]
        if not known:
            return logits.new_zeros(())
        answers = np.stack([row.answer for row in rows if row.answer is not None])
        own = logits[known] if self._model.sources is None else logits[known] + self._model.sources.mean()
        target = torch.from_numpy(answers).to(logits.device)
        return soft_target_loss(own, target, self._weights.temperature) * (len(known) / len(rows))


def labelled_loss(logits: Tensor, rows: Sequence[TrainingRow], sources: SourceBias | None = None) -> Tensor:
    """Return the loss of the rows that have a label; logits (batch, labels) without the biases of their sources."""
    indices = [index for index, row in enumerate(rows) if any(row.targets)]
    if not indices:
        return logits.new_zeros(())
    device, labelled = logits.device, [rows[index] for index in indices]
    logits = logits[indices]
    if sources is not None:
        logits = logits + sources(torch.tensor([row.source for row in labelled], device=device))
    targets = torch.tensor([row.targets for row in labelled], device=device)
    label_choices = torch.tensor([row.label_choices for row in labelled], device=device)
    noise = torch.tensor([(row.smoothing, row.bootstrap, row.absent_share) for row in labelled], device=device)
    loss = masked_cross_entropy(logits, targets, label_choices, noise[:, 0], noise[:, 1])
    return loss + expectation_regularization(logits, label_choices, noise[:, 2])
