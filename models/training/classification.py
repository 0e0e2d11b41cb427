"""Training of a classifier: a configuration, a base encoder and data in, a folder with weights and tokenizer out.

Seeds are fixed and every step's batch follows from the seed alone. So a killed run resumes from its newest checkpoint
as if it had not stopped. This module knows no bundles: `models.export.classification` makes a bundle of the folder.
"""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from torch import Tensor

from models.bundle import TOKENIZER
from models.data.classification import Dataset, Example
from models.data.leaks import remove_leaks
from models.data.sources import read_training, read_validation
from models.evaluation.classification import predict_validation
from models.networks.encoder import Classifier, base_file, encoder_layers, from_pretrained
from models.networks.quantization import is_quantized, load_trained
from models.networks.student import FITTED_BATCHES, make_student
from models.networks.torch_runtime import TorchRuntime
from models.prediction.calibration_fit import save_predictions
from models.tasks import TASKS, Task
from models.text.tokenizer import Tokenizer, adapt_tokenizer
from models.training.classification_batches import ClassificationConfig, collate_rows, plan_batches
from models.training.classification_loss import LossWeights, SupervisedObjective, begin_source_bias
from models.training.tracking import Tracker
from models.training.trainer import RUN, WEIGHTS, ConfigError, DeviceCollator, Trainer, choose_device

NOTES, LEFT_OUT = "notes.md", "left_out.json"
VALIDATION_BATCH = 50
CONFIGS = Path(__file__).parent.parent / "configs"


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


def train_classifier(
    config: ClassificationConfig,
    base: str,
    data: Path,
    out: Path,
    without: Sequence[str] = (),
    tracker: Tracker | None = None,
    start: Path | None = None,
) -> Path:
    """Train, and return the folder `out` with `model.safetensors`, `tokenizer.json` and `training.json`.

    Sources whose names begin with one of `without` are left out. The network's answers to their validation rows go to
    `left_out.json`. The weights begin as those of the training folder `start`, which has the same base.

    Raises:
        ConfigError: The weights of `start` do not fit.
    """
    left_out = [dataset for dataset in config.datasets if dataset.name.startswith(tuple(without))]
    config = replace(config, datasets=tuple(dataset for dataset in config.datasets if dataset not in left_out))
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    adapt_tokenizer(base_file(base, TOKENIZER), out / TOKENIZER)
    task = TASKS[config.task]
    tokenizer = Tokenizer(out / TOKENIZER, config.max_tokens, config.reading)
    training, validation = read_rows(data, config)
    batches = plan_batches(config, config.datasets, task, tokenizer, training)
    weights = {} if start is None else load_file(start / WEIGHTS)
    model = from_pretrained(base, task)
    if weights and not is_quantized(weights):
        load_start(model, weights)
    if config.quantized:
        samples = [collate_rows(rows, tokenizer) for rows in batches[:FITTED_BATCHES]]
        model = make_student(model, range(len(encoder_layers(model))), samples)
    if is_quantized(weights):
        load_start(model, weights)
    if config.source_bias:
        model.sources = begin_source_bias(config.datasets, task, training)
    collator = DeviceCollator(tokenizer, choose_device())
    validate = ClassificationValidation(model, task, collator, sample_validation(validation, config))
    objective = SupervisedObjective(model, collator, LossWeights(agreement=config.agreement), config.compiled)
    Trainer(config, model, objective, validate, out, len(batches), tracker).run(batches)
    save_run(out, base, None, (), config)
    if left_out:
        reader = Tokenizer(out / TOKENIZER, task.max_tokens, config.reading)
        save_predictions(out / LEFT_OUT, predict_validation(TorchRuntime(model), reader, task, data, left_out))
    return out


def load_start(model: Classifier, weights: dict[str, Tensor]) -> None:
    """Load the weights that a training begins with. Raises ConfigError if they are of another network."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = "the run to start from has another base, other layers or another rounding"
        raise ConfigError(f"{reason}; choose a run of this base with the same `quantized`") from error


def read_rows(data: Path, config: ClassificationConfig) -> tuple[list[Example], list[Example]]:
    """Return the training rows of all sources, without leaks, and the validation rows.

    A grammar shares words between its sides by design, so its rows are not compared.
    """
    found = [dataset for dataset in config.datasets if not dataset.fillings]
    made = [dataset for dataset in config.datasets if dataset.fillings]
    validation = [row for dataset in found for row in read_validation(data, dataset)]
    training = [row for dataset in found for row in read_training(data, dataset, config.seed)]
    training = remove_leaks(training, validation)
    training += [row for dataset in made for row in read_training(data, dataset, config.seed)]
    return training, validation + [row for dataset in made for row in read_validation(data, dataset)]


def save_run(
    out: Path, base: str, layers: Sequence[int] | None, texts: Sequence[Dataset], config: ClassificationConfig
) -> None:
    content = {"base": base, "layers": layers, "texts": [asdict(source) for source in texts], "config": asdict(config)}
    (out / RUN).write_text(json.dumps(content, indent=1), encoding="utf-8")


def sample_validation(validation: Sequence[Example], config: ClassificationConfig) -> dict[str, list[Example]]:
    """Return the rows of each data set that are evaluated during training."""
    by_dataset: dict[str, list[Example]] = {}
    for example in validation:
        by_dataset.setdefault(example.dataset, []).append(example)
    rng = random.Random(config.seed)
    return {name: rng.sample(rows, min(len(rows), config.validation_rows)) for name, rows in by_dataset.items()}


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
            for start in range(0, len(examples), VALIDATION_BATCH):
                batch = examples[start : start + VALIDATION_BATCH]
                inputs = self._collator([tokenizer.encode(example.text, example.entity) for example in batch])
                predictions += self._model(inputs.ids, inputs.mask, inputs.types).argmax(dim=-1).tolist()
                labels += [self._task.labels.index(example.labels[0]) for example in batch]
            yield f"macro_f1/{name}", float(f1_score(labels, predictions, labels=sorted(set(labels)), average="macro"))


def load_weights(folder: Path, run: TrainingRun, task: Task) -> Classifier:
    """Load the trained network of a training folder, in evaluation mode."""
    return load_trained(from_pretrained(run.base, task), load_file(folder / WEIGHTS), run.layers)
