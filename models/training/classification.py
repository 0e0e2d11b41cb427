"""Fine-tuning: a configuration, a base encoder and data in, a folder with weights and tokenizer out.

Seeds are fixed and every step's batch follows from the seed alone, so a killed run resumes from its newest
checkpoint as if it had not stopped. Knows nothing of bundles: `models.export.classification` makes one of the folder.
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
from models.data.classification import Dataset, Example, read, remove_leaks
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
class Config(TrainingConfig):
    """The training run of a task with fixed labels."""

    task: str
    augment: float
    datasets: tuple[Dataset, ...]


def read_config(path: Path) -> Config:
    """Raises ConfigError naming the field when one is missing or unknown."""
    return config_of(tomllib.loads(path.read_text(encoding="utf-8")))


def config_of(content: dict[str, Any]) -> Config:
    try:
        return Config(**{**content, "datasets": tuple(dataset_of(row) for row in content["datasets"])})
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the configuration cannot be used: {error}") from error


def dataset_of(row: dict[str, Any]) -> Dataset:
    """A row without `labels` names texts without labels."""
    return Dataset(**{**row, "labels": tuple(row.get("labels", ()))})


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A finished training run, as its folder tells of it.

    `layers` are those of the base that the network has, None for all, and `texts` what a student read without labels;
    `notes` is the folder's `notes.md`, which the card quotes.
    """

    base: str
    layers: tuple[int, ...] | None
    texts: tuple[Dataset, ...]
    config: Config
    notes: str


def task_of(folder: Path) -> str:
    """What a training folder's network answers."""
    content = json.loads((folder / RUN).read_text(encoding="utf-8"))
    return str(content.get("task") or content["config"].get("task", "intent"))


def load_run(folder: Path) -> TrainingRun:
    content = json.loads((folder / RUN).read_text(encoding="utf-8"))
    notes = folder / NOTES
    written = notes.read_text(encoding="utf-8").strip() if notes.exists() else ""
    layers = content["layers"] and tuple(content["layers"])
    texts = tuple(dataset_of(row) for row in content["texts"])
    return TrainingRun(content["base"], layers, texts, config_of(content["config"]), written)


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenised training row: its label's index and which labels it was chosen among, shape (labels,).

    A row without a label is for distillation alone.
    """

    tokens: Encoding
    label: int | None
    among: tuple[bool, ...]
    smoothing: float
    bootstrap: float
    absent_share: float


def train_classifier(config: Config, base: str, data: Path, out: Path) -> Path:
    """Train, and return the folder `out` with `model.safetensors`, `tokenizer.json` and `training.json`."""
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    adapt_tokenizer(base_file(base, TOKENIZER), out / TOKENIZER)
    task = TASKS[config.task]
    tokenizer = Tokenizer(out / TOKENIZER, config.max_tokens)
    validation = [row for dataset in config.datasets for row in read(data, dataset, "validation")]
    training = [row for dataset in config.datasets for row in read(data, dataset, "train")]
    training = remove_leaks(training, validation)
    batches = plan_batches(config, config.datasets, task, tokenizer, training)
    model = from_pretrained(base, task)
    feed = DeviceCollator(tokenizer, choose_device())
    looked_at = Validation(model, task, feed, sample_validation(validation, config))
    Trainer(config, model, Supervised(model, feed), looked_at, out, len(batches)).run(batches)
    save_run(out, base, None, (), config)
    return out


def save_run(out: Path, base: str, layers: Sequence[int] | None, texts: Sequence[Dataset], config: Config) -> None:
    content = {"base": base, "layers": layers, "texts": [asdict(source) for source in texts], "config": asdict(config)}
    (out / RUN).write_text(json.dumps(content, indent=1), encoding="utf-8")


def plan_batches(
    config: Config, datasets: Sequence[Dataset], task: Task, tokenizer: Tokenizer, training: Sequence[Example]
) -> list[list[Row]]:
    """Every batch of the whole run, in order."""
    noise = {dataset.name: dataset for dataset in datasets}
    batches: list[list[Row]] = []
    for number in range(ceil(config.epochs)):
        rows = []
        for example in make_epoch(training, datasets, config.seed, number, config.augment):
            among = tuple(label in example.label_choices for label in task.labels)
            tokens = tokenizer.encode(example.text, example.entity)
            of = noise[example.dataset]
            label = None if example.label is None else task.labels.index(example.label)
            rows.append(Row(tokens, label, among, of.smoothing, of.bootstrap, of.absent_share))
        part = batch_by_length(rows, config, random.Random(config.seed + number))
        batches += part[: round(min(1.0, config.epochs - number) * len(part))]
    return batches


def sample_validation(validation: Sequence[Example], config: Config) -> dict[str, list[Example]]:
    """The rows of each set that are looked at while training."""
    rows: dict[str, list[Example]] = {}
    for example in validation:
        rows.setdefault(example.dataset, []).append(example)
    chance = random.Random(config.seed)
    return {name: chance.sample(own, min(len(own), config.validation_rows)) for name, own in rows.items()}


class Supervised:
    """The labels' loss of a network."""

    def __init__(self, model: Classifier, feed: DeviceCollator) -> None:
        self._model, self._feed = model, feed

    def __call__(self, rows: Sequence[Row]) -> Tensor:
        inputs = self._feed([row.tokens for row in rows])
        return labelled_loss(self._model(inputs.ids, inputs.mask, inputs.types).float(), rows)


class Validation:
    """Macro-F1 of each set over the labels that it has, answers chosen among all the task's labels."""

    def __init__(self, model: Classifier, task: Task, feed: DeviceCollator, rows: dict[str, list[Example]]) -> None:
        self._model, self._task, self._feed, self._rows = model, task, feed, rows

    def __call__(self) -> Iterator[tuple[str, float]]:
        for name, examples in self._rows.items():
            truth, answers = [], []
            for start in range(0, len(examples), 50):
                part = examples[start : start + 50]
                inputs = self._feed([self._feed.tokenizer.encode(example.text, example.entity) for example in part])
                answers += self._model(inputs.ids, inputs.mask, inputs.types).argmax(dim=-1).tolist()
                truth += [self._task.labels.index(example.label) for example in part]
            yield f"macro_f1/{name}", float(f1_score(truth, answers, labels=sorted(set(truth)), average="macro"))


def labelled_loss(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Of the rows that have a label; logits (batch, labels)."""
    chosen = [number for number, row in enumerate(rows) if row.label is not None]
    if not chosen:
        return logits.new_zeros(())
    device, own = logits.device, [rows[number] for number in chosen]
    labels = torch.tensor([row.label for row in own], device=device)
    among = torch.tensor([row.among for row in own], device=device)
    noise = torch.tensor([(row.smoothing, row.bootstrap, row.absent_share) for row in own], device=device)
    loss = masked_cross_entropy(logits[chosen], labels, among, noise[:, 0], noise[:, 1])
    return loss + expectation_regularization(logits[chosen], among, noise[:, 2])


def load_weights(folder: Path, run: TrainingRun, task: Task) -> Classifier:
    """The trained network of a training folder, ready to evaluate."""
    return load_trained(from_pretrained(run.base, task), load_file(folder / WEIGHTS), run.layers)
