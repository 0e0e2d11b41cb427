"""A training run of any network: batches, the optimiser, checkpoints, and the device.

Every step follows from the seed alone, so a killed run resumes from its newest checkpoint as if it had not stopped.
This module knows no data sets, tasks or labels.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor

from models.bundle import TOKENIZER
from models.files import replace_atomically
from models.graph.names import WORD_EMBEDDINGS
from models.networks.base_encoder import BaseEncoderError, check_base_encoder
from models.networks.encoder import Network
from models.text.encoding import Encoding, collate
from models.text.tokenizer import Tokenizer
from models.training.tracking import TensorBoardTracker, Tracker, recording

WEIGHTS, CHECKPOINT, RUN = "model.safetensors", "checkpoint.pt", "training.json"
SHUFFLE_ROWS = 2048
"""Rows that are sorted by length together. More would pad less, and fewer would make batches more random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """The settings of a training run. `models/configs/*.toml` explains each field."""

    seed: int
    epochs: float
    batch_tokens: int
    batch_examples: int
    max_tokens: int
    encoder_rate: float
    head_rate: float
    layer_decay: float
    weight_decay: float
    warmup_steps: int
    anneal: float
    freeze_embeddings: bool
    validate_every: int
    validation_rows: int
    checkpoint_every: int
    frozen_layers: int = 0


class ConfigError(ValueError):
    """A configuration that cannot be used, such as one with a missing or unknown field."""


class Tokenized(Protocol):
    @property
    def tokens(self) -> Encoding: ...


AnyRow = TypeVar("AnyRow", bound=Tokenized)


def batch_by_length(
    rows: Sequence[AnyRow], config: TrainingConfig, rng: random.Random, parts: int = 1
) -> list[list[AnyRow]]:
    """Return batches of similar lengths in random order, each within its part of the budget of padded tokens."""
    max_tokens, max_rows = config.batch_tokens // parts, max(1, config.batch_examples // parts)
    batches: list[list[AnyRow]] = []
    for start in range(0, len(rows), SHUFFLE_ROWS):
        batch: list[AnyRow] = []
        for row in sorted(rows[start : start + SHUFFLE_ROWS], key=lambda row: row.tokens.length):
            if batch and (row.tokens.length * (len(batch) + 1) > max_tokens or len(batch) == max_rows):
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
    rng.shuffle(batches)
    return batches


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch on the device. `ids`, `mask` and `types` are (batch, length) each."""

    ids: Tensor
    mask: Tensor
    types: Tensor


class DeviceCollator:
    """Collates encodings to tensors on the device."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer, device

    def __call__(self, tokens: Sequence[Encoding]) -> Inputs:
        batch = collate(tokens, self.tokenizer.pad_id)
        return Inputs(
            *(torch.from_numpy(array).to(self.device) for array in (batch.ids, batch.mask, batch.token_types))
        )


Objective = Callable[[list[Any]], Tensor]
"""Computes the loss of a batch from its rows."""


Validate = Callable[[], Iterator[tuple[str, float]]]
"""Yields the names and values of the validation metrics during training."""


class Trainer:
    """A training run: the optimiser's state, the steps, checkpoints, recorded figures and validation.

    The figures go to TensorBoard files, or to the `tracker`.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: Network,
        objective: Objective,
        validate: Validate,
        out: Path,
        steps: int,
        tracker: Tracker | None = None,
    ) -> None:
        self.config, self.out, self.steps = config, out, steps
        self.tracker = tracker or TensorBoardTracker()
        self.objective, self.compute_metrics = objective, validate
        self.device = choose_device()
        self.use_bfloat16 = supports_bfloat16(self.device)
        if self.use_bfloat16 and self.device.type == "cpu":
            # There, the gradient of fused attention in bfloat16 is ten times slower than the plain operators.
            model.encoder.set_attn_implementation("eager")
        self.model = model.to(self.device)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, config), weight_decay=config.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.rate)
        self.step = 0
        if (out / CHECKPOINT).exists():
            self.resume()

    def rate(self, step: int) -> float:
        """Return the learning rate as a factor of its peak: linear warm-up, constant, linear annealing to zero."""
        warmup_steps, annealed = self.config.warmup_steps, (self.steps - step) / (self.config.anneal * self.steps)
        return max(0.0, min(1.0, (step + 1) / max(1.0, warmup_steps), annealed))

    def run(self, batches: Sequence[list[Any]]) -> None:
        """Take all remaining steps, then write the weights."""
        bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with bar, recording(self.tracker, self.out, asdict(self.config), self.step):
            progress = bar.add_task("train", total=self.steps, completed=self.step, loss=0.0)
            while self.step < self.steps:
                loss = self.train_step(batches[self.step])
                if self.step % 20 == 0 and not bar.console.is_terminal:
                    bar.console.print(f"step {self.step} of {self.steps} loss {loss:.3f}", highlight=False)
                bar.update(progress, completed=self.step, loss=loss)
                figures = {"loss": loss, "learning_rate": float(self.schedule.get_last_lr()[0])}
                if self.step % self.config.validate_every == 0 or self.step == self.steps:
                    for name, value in self.validate():
                        figures[name] = value
                        bar.console.print(f"step {self.step} loss {loss:.3f} {name} {value:.4f}", highlight=False)
                self.tracker.log(figures, self.step)
                if self.step % self.config.checkpoint_every == 0:
                    self.save()
        self.model.finish()
        # Clones, because layers may share a parameter and safetensors refuses shared memory.
        save_file({name: tensor.clone() for name, tensor in self.model.state_dict().items()}, self.out / WEIGHTS)

    def train_step(self, rows: list[Any]) -> float:
        """Take an optimiser step and return its loss."""
        # Seeding each step makes dropout the same whether or not the run was resumed.
        torch.manual_seed(self.config.seed * 1_000_003 + self.step)
        self.model.train()
        with self.precision():
            loss = self.objective(rows)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return float(loss.detach())

    def validate(self) -> list[tuple[str, float]]:
        self.model.eval()
        with torch.inference_mode(), self.precision():
            return list(self.compute_metrics())

    def precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bfloat16)

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
        }
        with replace_atomically(self.out / CHECKPOINT) as temporary:
            torch.save(state, temporary)

    def resume(self) -> None:
        state = torch.load(self.out / CHECKPOINT, weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step = int(state["step"])


def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def supports_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 is faster than fp32: on a GPU, and on a CPU with matrix units (AMX)."""
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def parameter_groups(model: Network, config: TrainingConfig) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups.

    The head has a separate rate, and each encoder layer a lower rate than the layer above. Word embeddings and the
    lowest layers, with what lies below them, are frozen if the configuration says so.
    """
    layers = len(model.encoder.encoder.layer)  # type: ignore[union-attr, arg-type]
    groups: dict[int, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        depth = layer_depth(name, layers)
        if (config.freeze_embeddings and name == WORD_EMBEDDINGS) or depth <= config.frozen_layers > 0:
            parameter.requires_grad_(False)
            continue
        groups.setdefault(depth, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.head_rate if depth > layers else config.encoder_rate * config.layer_decay ** (layers - depth),
        }
        for depth, parameters in sorted(groups.items(), reverse=True)
    ]


def layer_depth(name: str, layers: int) -> int:
    """Return 0 for embeddings and what all layers share, 1 to `layers` for layers, and `layers` + 1 for the head."""
    if "encoder.layer." in name:
        return int(name.split("encoder.layer.")[1].split(".")[0]) + 1
    return 0 if name.startswith("encoder.") else layers + 1


def require_run(folder: Path) -> None:
    """Raise ConfigError unless `folder` holds what a finished training run leaves, and its base encoder is there."""
    missing = [name for name in (RUN, WEIGHTS, TOKENIZER) if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{folder} is no finished training run: it lacks {', '.join(missing)}")
    try:
        check_base_encoder(str(json.loads((folder / RUN).read_text(encoding="utf-8"))["base"]))
    except BaseEncoderError as error:
        raise ConfigError(f"{folder} needs the base encoder that it was trained from: {error}") from error
