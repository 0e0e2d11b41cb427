"""Distillation: a trained network teaches a shallower one, on labelled data and on plain text.

The student begins as some of the teacher's own layers and learns its softened answers (Hinton et al. 2015), the states
of the layers it stands in for (Sun et al. 2019, patient distillation), and the labels where there are any. Its
linear layers compute in 8 bits from the first step, as the graph that serves will. Knows nothing of bundles.
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
from models.data.classification import Dataset, read, read_texts, remove_leaks
from models.networks.encoder import Classifier, encoder_layers
from models.networks.student import FITTED_BATCHES, States, compile_states, make_student
from models.tasks import TASKS
from models.text.encoding import collate
from models.text.tokenizer import Tokenizer
from models.training.classification import (
    Config,
    Row,
    Validation,
    config_of,
    dataset_of,
    labelled_loss,
    load_run,
    load_weights,
    plan_batches,
    sample_validation,
    save_run,
)
from models.training.losses import hidden_state_loss, soft_target_loss
from models.training.trainer import ConfigError, DeviceCollator, Inputs, Trainer, choose_device


@dataclass(frozen=True, slots=True)
class Distillation:
    """What a student is and learns from; `models/configs/*-student.toml` explains each field.

    `layers` are those of the teacher that the student begins with, in order; `texts` are files without labels.
    Of the texts a share `corrupted` has a share `corrupted_tokens` of its tokens swapped for others: the teacher tells
    what they mean now, so the few labelled texts become many. `compiled` needs a C++ compiler and a minute or two at
    the start.
    """

    layers: tuple[int, ...]
    temperature: float
    labels_weight: float
    states_weight: float
    corrupted: float
    corrupted_tokens: float
    compiled: bool
    texts: tuple[Dataset, ...]
    training: Config


def read_distillation(path: Path) -> Distillation:
    """Raises ConfigError naming the field when one is missing or unknown."""
    return distillation_of(tomllib.loads(path.read_text(encoding="utf-8")))


def distillation_of(content: dict[str, Any]) -> Distillation:
    try:
        texts = tuple(dataset_of(row) for row in content["texts"])
        own = content["distillation"]
        training = {name: value for name, value in content.items() if name not in ("texts", "distillation")}
        return Distillation(**{**own, "layers": tuple(own["layers"])}, texts=texts, training=config_of(training))
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the configuration cannot be used: {error}") from error


def distill_classifier(config: Distillation, teacher: Path, data: Path, texts: Path, out: Path) -> Path:
    """Train a student of the training folder `teacher`; returns `out`, a training folder like it.

    `texts` holds the files that the configuration names, `NAME.txt.gz`, a text a line.
    """
    training, task, taught = config.training, TASKS[config.training.task], load_run(teacher)
    torch.manual_seed(training.seed)
    random.seed(training.seed)
    out.mkdir(parents=True, exist_ok=True)
    copyfile(teacher / TOKENIZER, out / TOKENIZER)
    tokenizer = Tokenizer(out / TOKENIZER, training.max_tokens)
    validation = [row for dataset in training.datasets for row in read(data, dataset, "validation")]
    rows = [row for dataset in training.datasets for row in read(data, dataset, "train")]
    rows += [row for source in config.texts for row in read_texts(texts, source)]
    batches = plan_batches(
        training, (*training.datasets, *config.texts), task, tokenizer, remove_leaks(rows, validation)
    )
    network = load_weights(teacher, taught, task)
    student = make_student(network, config.layers, [collate_rows(rows, tokenizer) for rows in batches[:FITTED_BATCHES]])
    feed = DeviceCollator(tokenizer, choose_device())
    network.to(feed.device)
    objective = DistillationObjective(student, network, config, feed)
    looked_at = Validation(student, task, feed, sample_validation(validation, training))
    Trainer(training, student, objective, looked_at, out, len(batches)).run(batches)
    kept = taught.layers or tuple(range(len(encoder_layers(network))))
    save_run(out, taught.base, [kept[layer] for layer in config.layers], config.texts, training)
    return out


def collate_rows(rows: Sequence[Row], tokenizer: Tokenizer) -> tuple[Tensor, Tensor, Tensor]:
    batch = collate([row.tokens for row in rows], tokenizer.pad_id)
    return torch.from_numpy(batch.ids), torch.from_numpy(batch.mask), torch.from_numpy(batch.token_types)


class DistillationObjective:
    """The loss of a student beside its teacher."""

    def __init__(self, student: Classifier, teacher: Classifier, config: Distillation, feed: DeviceCollator) -> None:
        self._feed = feed
        self._student, self._teacher, self._config = student, teacher.requires_grad_(False).eval(), config
        self._own: States = student.states
        self._shown: States = teacher.states
        if config.compiled:
            self._own, self._shown = compile_states(self._own), compile_states(self._shown)

    def __call__(self, rows: Sequence[Row]) -> Tensor:
        inputs = self._feed([row.tokens for row in rows])
        mask, types, config = inputs.mask, inputs.types, self._config
        ids, whole = swap_tokens(inputs, config.corrupted, config.corrupted_tokens)
        with torch.no_grad():
            shown = self._shown(ids, mask, types)
            target = self._teacher.answer(shown[-1], mask, types).float()
        own = self._own(ids, mask, types)
        logits = self._student.answer(own[-1], mask, types).float()
        pairs = [(own[place], shown[layer + 1]) for place, layer in enumerate(config.layers, 1)]
        states = torch.stack([hidden_state_loss(*pair, mask) for pair in pairs]).mean()
        soft = soft_target_loss(logits, target, config.temperature)
        labelled = labelled_loss(logits[whole], [rows[number] for number in whole.tolist()])
        return soft + config.labels_weight * labelled + config.states_weight * states


def swap_tokens(inputs: Inputs, share: float, tokens: float) -> tuple[Tensor, Tensor]:
    """The ids, (batch, length), some swapped for other tokens of the batch, and the numbers of the rows left whole.

    The first and last piece of a text stay, and a target's tokens.
    """
    ids, mask = inputs.ids, inputs.mask
    words = mask * (1 - inputs.types)
    words[:, 0] = 0
    words.scatter_(1, mask.sum(dim=1, keepdim=True) - 1, 0)
    changed = torch.rand(len(ids), device=ids.device) < share
    swapped = changed.unsqueeze(1) & (torch.rand(ids.shape, device=ids.device) < tokens) & words.bool()
    others = ids[words.bool()]
    if len(others):
        ids = torch.where(swapped, others[torch.randint(len(others), ids.shape, device=ids.device)], ids)
    return ids, (~changed).nonzero().flatten()
