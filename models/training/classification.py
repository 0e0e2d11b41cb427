"""Training of a classifier: a configuration, a base encoder and data in, a folder with weights and tokenizer out.

Seeds are fixed and every step's batch follows from the seed alone. So a killed run resumes from its newest checkpoint
as if it had not stopped. This module knows no bundles: `models.export.classification` makes a bundle of the folder.
"""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from torch import Tensor

from models.bundle import TOKENIZER
from models.data.augmentation import make_epoch
from models.data.classification import Dataset, Example, read_dataset, remove_leaks
from models.networks.encoder import Classifier, base_file, from_pretrained
from models.networks.quantization import load_trained
from models.tasks import TASKS, Task
from models.text.encoding import Encoding
from models.text.tokenizer import Tokenizer, adapt_tokenizer
from models.training.losses import expectation_regularization, masked_cross_entropy
from models.training.trainer import (
    RUN,
    WEIGHTS,
    ConfigError,
    DeviceCollator,
    Trainer,
    TrainingConfig,
    batch_by_length,
    choose_device,
)

NOTES = "notes.md"
CONFIGS = Path(__file__).parent.parent / "configs"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassificationConfig(TrainingConfig):
    """The settings of a training run for a task with fixed labels."""

    task: str
    augment: float
    datasets: tuple[Dataset, ...]


def read_config(path: Path) -> ClassificationConfig:
    """Read a configuration file. Raises ConfigError naming a missing or unknown field."""
    return parse_config(tomllib.loads(path.read_text(encoding="utf-8")))


def parse_config(content: dict[str, Any]) -> ClassificationConfig:
    """Return the configuration of a parsed file. Raises ConfigError naming a missing or unknown field."""
    try:
        return ClassificationConfig(**{**content, "datasets": tuple(parse_dataset(row) for row in content["datasets"])})
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the configuration cannot be used: {error}") from error


def parse_dataset(row: dict[str, Any]) -> Dataset:
    """Return the data set of a configuration's table. A table without `labels` names texts without labels."""
    return Dataset(**{**row, "labels": tuple(row.get("labels", ()))})


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A finished training run, read from its folder.

    `layers` are the layers of the base that the network has, None for all. `texts` are the files that a student read
    without labels. `notes` is the folder's `notes.md`, which the card quotes.
    """

    base: str
    layers: tuple[int, ...] | None
    texts: tuple[Dataset, ...]
    config: ClassificationConfig
    notes: str


def read_task(folder: Path) -> str:
    """Return the task of a training folder's network."""
    content = json.loads((folder / RUN).read_text(encoding="utf-8"))
    return str(content.get("task") or content["config"].get("task", "intent"))


def load_run(folder: Path) -> TrainingRun:
    content = json.loads((folder / RUN).read_text(encoding="utf-8"))
    notes_file = folder / NOTES
    notes = notes_file.read_text(encoding="utf-8").strip() if notes_file.exists() else ""
    layers = content["layers"] and tuple(content["layers"])
    texts = tuple(parse_dataset(row) for row in content["texts"])
    return TrainingRun(content["base"], layers, texts, parse_config(content["config"]), notes)


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A tokenised training row: the index of its label, and a mask (labels,) of the labels it was chosen from.

    A row without a label is for distillation alone.
    """

    tokens: Encoding
    label: int | None
    label_choices: tuple[bool, ...]
    smoothing: float
    bootstrap: float
    absent_share: float


def train_classifier(config: ClassificationConfig, base: str, data: Path, out: Path) -> Path:
    """Train, and return the folder `out` with `model.safetensors`, `tokenizer.json` and `training.json`."""
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    adapt_tokenizer(base_file(base, TOKENIZER), out / TOKENIZER)
    task = TASKS[config.task]
    tokenizer = Tokenizer(out / TOKENIZER, config.max_tokens)
    validation = [row for dataset in config.datasets for row in read_dataset(data, dataset, "validation")]
    training = [row for dataset in config.datasets for row in read_dataset(data, dataset, "train")]
    training = remove_leaks(training, validation)
    batches = plan_batches(config, config.datasets, task, tokenizer, training)
    model = from_pretrained(base, task)
    collator = DeviceCollator(tokenizer, choose_device())
    validate = ClassificationValidation(model, task, collator, sample_validation(validation, config))
    Trainer(config, model, SupervisedObjective(model, collator), validate, out, len(batches)).run(batches)
    save_run(out, base, None, (), config)
    return out


def save_run(
    out: Path, base: str, layers: Sequence[int] | None, texts: Sequence[Dataset], config: ClassificationConfig
) -> None:
    content = {"base": base, "layers": layers, "texts": [asdict(source) for source in texts], "config": asdict(config)}
    (out / RUN).write_text(json.dumps(content, indent=1), encoding="utf-8")


def plan_batches(
    config: ClassificationConfig,
    datasets: Sequence[Dataset],
    task: Task,
    tokenizer: Tokenizer,
    training: Sequence[Example],
) -> list[list[TrainingRow]]:
    """Return every batch of the whole run, in order."""
    by_name = {dataset.name: dataset for dataset in datasets}
    batches: list[list[TrainingRow]] = []
    for epoch in range(ceil(config.epochs)):
        rows = []
        for example in make_epoch(training, datasets, config.seed, epoch, config.augment):
            label_choices = tuple(label in example.label_choices for label in task.labels)
            tokens = tokenizer.encode(example.text, example.entity)
            dataset = by_name[example.dataset]
            label = None if example.label is None else task.labels.index(example.label)
            rows.append(
                TrainingRow(tokens, label, label_choices, dataset.smoothing, dataset.bootstrap, dataset.absent_share)
            )
        epoch_batches = batch_by_length(rows, config, random.Random(config.seed + epoch))
        batches += epoch_batches[: round(min(1.0, config.epochs - epoch) * len(epoch_batches))]
    return batches


def sample_validation(validation: Sequence[Example], config: ClassificationConfig) -> dict[str, list[Example]]:
    """Return the rows of each data set that are evaluated during training."""
    by_dataset: dict[str, list[Example]] = {}
    for example in validation:
        by_dataset.setdefault(example.dataset, []).append(example)
    rng = random.Random(config.seed)
    return {name: rng.sample(rows, min(len(rows), config.validation_rows)) for name, rows in by_dataset.items()}


class SupervisedObjective:
    """The loss of a network on labels."""

    def __init__(self, model: Classifier, collator: DeviceCollator) -> None:
        self._model, self._collator = model, collator

    def __call__(self, rows: Sequence[TrainingRow]) -> Tensor:
        inputs = self._collator([row.tokens for row in rows])
        return labelled_loss(self._model(inputs.ids, inputs.mask, inputs.types).float(), rows)


class ClassificationValidation:
    """Macro-F1 of each data set over its labels, with predictions from all labels of the task."""

    def __init__(
        self, model: Classifier, task: Task, collator: DeviceCollator, examples: dict[str, list[Example]]
    ) -> None:
        self._model, self._task, self._collator, self._examples = model, task, collator, examples

    def __call__(self) -> Iterator[tuple[str, float]]:
        tokenizer = self._collator.tokenizer
        for name, examples in self._examples.items():
            labels, predictions = [], []
            for start in range(0, len(examples), 50):
                batch = examples[start : start + 50]
                inputs = self._collator([tokenizer.encode(example.text, example.entity) for example in batch])
                predictions += self._model(inputs.ids, inputs.mask, inputs.types).argmax(dim=-1).tolist()
                labels += [self._task.labels.index(example.label) for example in batch]
            yield f"macro_f1/{name}", float(f1_score(labels, predictions, labels=sorted(set(labels)), average="macro"))


def labelled_loss(logits: Tensor, rows: Sequence[TrainingRow]) -> Tensor:
    """Return the loss of the rows that have a label; logits (batch, labels)."""
    indices = [index for index, row in enumerate(rows) if row.label is not None]
    if not indices:
        return logits.new_zeros(())
    device, labelled = logits.device, [rows[index] for index in indices]
    labels = torch.tensor([row.label for row in labelled], device=device)
    label_choices = torch.tensor([row.label_choices for row in labelled], device=device)
    noise = torch.tensor([(row.smoothing, row.bootstrap, row.absent_share) for row in labelled], device=device)
    loss = masked_cross_entropy(logits[indices], labels, label_choices, noise[:, 0], noise[:, 1])
    return loss + expectation_regularization(logits[indices], label_choices, noise[:, 2])


def load_weights(folder: Path, run: TrainingRun, task: Task) -> Classifier:
    """Load the trained network of a training folder, in evaluation mode."""
    return load_trained(from_pretrained(run.base, task), load_file(folder / WEIGHTS), run.layers)
