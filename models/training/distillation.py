"""Distillation: training of a shallower student on a teacher's answers, with labelled data and plain texts.

The student begins with some of the teacher's layers. It learns the teacher's softened answers (Hinton et al. 2015), the
states of the layers it stands in for (Sun et al. 2019, patient distillation), and the labels where they exist. Its
linear layers compute in 8 bits from the first step, as the served graph will. This module knows no bundles.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from torch import Tensor

from models.bundle import TOKENIZER
from models.data.classification import Dataset, read_texts
from models.data.leaks import remove_leaks
from models.networks.encoder import Classifier, encoder_layers
from models.networks.student import FITTED_BATCHES, StatesFunction, compile_states, make_student
from models.tasks import TASKS
from models.text.tokenizer import Tokenizer
from models.training.classification import (
    ClassificationValidation,
    load_run,
    load_weights,
    parse_config,
    parse_dataset,
    read_rows,
    sample_validation,
    save_run,
)
from models.training.classification_batches import (
    AnswerLookup,
    ClassificationConfig,
    TrainingRow,
    collate_rows,
    plan_batches,
)
from models.training.classification_loss import (
    LossWeights,
    SupervisedObjective,
    begin_source_bias,
    labelled_loss,
    split_by_length,
)
from models.training.losses import hidden_state_loss, soft_target_loss
from models.training.tracking import Tracker
from models.training.trainer import ConfigError, DeviceCollator, Inputs, Objective, Trainer, choose_device


@dataclass(frozen=True, slots=True)
class DistillationConfig:
    """The student and its training. `models/configs/*-student.toml` explains each field.

    `layers` are the teacher's layers that the student begins with, in order. `texts` are files without labels.
    In a share `corrupted` of the texts, a share `corrupted_tokens` of the tokens is swapped for random tokens. The
    teacher answers the corrupted texts too, so a few labelled texts become many. `compiled` needs a C++ compiler and a
    minute or two at the start.
    """

    layers: tuple[int, ...]
    temperature: float
    labels_weight: float
    states_weight: float
    corrupted: float
    corrupted_tokens: float
    compiled: bool
    texts: tuple[Dataset, ...]
    training: ClassificationConfig


def read_distillation_config(path: Path) -> DistillationConfig:
    """Read a configuration file. Raises ConfigError naming a missing or unknown field."""
    return parse_distillation(tomllib.loads(path.read_text(encoding="utf-8")))


def parse_distillation(content: dict[str, Any]) -> DistillationConfig:
    """Return the configuration of a parsed file. Raises ConfigError naming a missing or unknown field."""
    try:
        texts = tuple(parse_dataset(row) for row in content["texts"])
        student = content["distillation"]
        training = {name: value for name, value in content.items() if name not in ("texts", "distillation")}
        fields = {**student, "layers": tuple(student["layers"])}
        return DistillationConfig(**fields, texts=texts, training=parse_config(training))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the configuration cannot be used: {error}") from error


def distill_classifier(
    config: DistillationConfig,
    teacher: Path,
    data: Path,
    texts: Path,
    out: Path,
    tracker: Tracker | None = None,
    answers: AnswerLookup | None = None,
) -> Path:
    """Train a student of the training folder `teacher`, and return `out`, a training folder like it.

    `texts` holds the files that the configuration names, `NAME.txt.gz`, with a text per line. With `answers`, of this
    teacher or of several, the teacher gives its layers alone and does not run at each step.
    """
    training, task, teacher_run = config.training, TASKS[config.training.task], load_run(teacher)
    torch.manual_seed(training.seed)
    random.seed(training.seed)
    out.mkdir(parents=True, exist_ok=True)
    copyfile(teacher / TOKENIZER, out / TOKENIZER)
    tokenizer = Tokenizer(out / TOKENIZER, training.max_tokens, training.reading)
    rows, validation = read_rows(data, training)
    unlabelled = [row for source in config.texts for row in read_texts(texts, source)]
    rows += remove_leaks(unlabelled, validation)
    batches = plan_batches(training, (*training.datasets, *config.texts), task, tokenizer, rows, answers)
    network = load_weights(teacher, teacher_run, task)
    student = make_student(network, config.layers, [collate_rows(rows, tokenizer) for rows in batches[:FITTED_BATCHES]])
    if training.source_bias:
        student.sources = begin_source_bias((*training.datasets, *config.texts), task, rows)
    collator = DeviceCollator(tokenizer, choose_device())
    objective: Objective
    if answers is not None:
        weights = LossWeights(labels=config.labels_weight, agreement=training.agreement, temperature=config.temperature)
        objective = SupervisedObjective(student, collator, weights, config.compiled)
    else:
        objective = DistillationObjective(student, network.to(collator.device), config, collator)
    validate = ClassificationValidation(student, task, collator, sample_validation(validation, training))
    Trainer(training, student, objective, validate, out, len(batches), tracker).run(batches)
    base_layers = teacher_run.layers or tuple(range(len(encoder_layers(network))))
    save_run(out, teacher_run.base, [base_layers[layer] for layer in config.layers], config.texts, training)
    return out


class DistillationObjective:
    """The loss of a student on its teacher's answers and states and on the labels."""

    def __init__(
        self, student: Classifier, teacher: Classifier, config: DistillationConfig, collator: DeviceCollator
    ) -> None:
        self._collator = collator
        self._student, self._teacher, self._config = student, teacher.requires_grad_(False).eval(), config
        self._student_states: StatesFunction = student.states
        self._teacher_states: StatesFunction = teacher.states
        if config.compiled:
            self._student_states = compile_states(self._student_states)
            self._teacher_states = compile_states(self._teacher_states)

    def __call__(self, rows: Sequence[TrainingRow]) -> Tensor:
        losses = []
        for part in split_by_length(rows):
            plain, noisy = ([row for row in part if (row.twin is None) is alone] for alone in (True, False))
            losses += [
                loss(kind) * (len(kind) / len(rows))
                for loss, kind in ((self._plain_loss, plain), (self._noisy_loss, noisy))
                if kind
            ]
        return torch.stack(losses).sum()

    def _plain_loss(self, rows: Sequence[TrainingRow]) -> Tensor:
        """Return the loss of rows that student and teacher read alike."""
        inputs, config = self._collator([row.tokens for row in rows]), self._config
        mask, types = inputs.mask, inputs.types
        ids, unchanged = swap_tokens(inputs, config.corrupted, config.corrupted_tokens)
        with torch.no_grad():
            teacher = self._teacher_states(ids, mask, types)
            target = self._teacher.classify(teacher[-1], mask, types).float()
        student = self._student_states(ids, mask, types)
        logits = self._student.classify(student[-1], mask, types).float()
        pairs = [(student[index], teacher[layer + 1]) for index, layer in enumerate(config.layers, 1)]
        states = torch.stack([hidden_state_loss(*pair, mask) for pair in pairs]).mean()
        loss = self._answer_loss(logits, target, rows, unchanged.tolist())
        return loss + config.states_weight * states

    def _noisy_loss(self, rows: Sequence[TrainingRow]) -> Tensor:
        """Return the loss of rows that the student reads with noise and the teacher without."""
        clean = self._collator([row.tokens for row in rows])
        noisy = self._collator([row.twin for row in rows if row.twin is not None])
        with torch.no_grad():
            target = self._teacher(clean.ids, clean.mask, clean.types).float()
        student = self._student_states(noisy.ids, noisy.mask, noisy.types)
        logits = self._student.classify(student[-1], noisy.mask, noisy.types).float()
        return self._answer_loss(logits, target, rows, range(len(rows)))

    def _answer_loss(
        self, logits: Tensor, target: Tensor, rows: Sequence[TrainingRow], labelled: Sequence[int]
    ) -> Tensor:
        """Return the loss of logits on the teacher's, both (rows, labels), and on the labels of the rows `labelled`."""
        mean = 0.0 if self._student.sources is None else self._student.sources.mean()
        soft = soft_target_loss(logits + mean, target, self._config.temperature)
        hard = labelled_loss(logits[labelled], [rows[index] for index in labelled], self._student.sources)
        return soft + self._config.labels_weight * hard


def swap_tokens(inputs: Inputs, share: float, tokens: float) -> tuple[Tensor, Tensor]:
    """Swap a share `tokens` of the tokens in a share `share` of the texts for random tokens of the batch.

    Returns the ids (batch, length) and the indices of the unchanged rows. The first and last token of a text stay, and
    so do the entity's tokens.
    """
    ids, mask = inputs.ids, inputs.mask
    swappable = mask * (1 - inputs.types)
    swappable[:, 0] = 0
    swappable.scatter_(1, mask.sum(dim=1, keepdim=True) - 1, 0)
    changed = torch.rand(len(ids), device=ids.device) < share
    swapped = changed.unsqueeze(1) & (torch.rand(ids.shape, device=ids.device) < tokens) & swappable.bool()
    pool = ids[swappable.bool()]
    if len(pool):
        ids = torch.where(swapped, pool[torch.randint(len(pool), ids.shape, device=ids.device)], ids)
    return ids, (~changed).nonzero().flatten()
