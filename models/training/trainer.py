"""A training run of any network: batches, the optimiser, checkpoints, and where the tensors are.

Every step follows from the seed alone, so a killed run resumes from its newest checkpoint as if it had not stopped.
Knows nothing of data sets, tasks or labels.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from models.bundle import TOKENIZER
from models.files import replace_atomically
from models.graph.names import WORD_EMBEDDINGS
from models.networks.base_encoder import BaseEncoderError, check_base_encoder
from models.networks.encoder import Network
from models.text.encoding import Encoding, collate
from models.text.tokenizer import Tokenizer

WEIGHTS, CHECKPOINT, RUN = "model.safetensors", "checkpoint.pt", "training.json"
SHUFFLE_ROWS = 2048
"""Rows that are sorted by length together: enough for little padding, few enough for random batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How a network is trained; `models/configs/*.toml` explains each field. Rates are per step, shares of all."""

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


class ConfigError(ValueError):
    """A configuration that lacks a field or has one too many."""


class Sized(Protocol):
    @property
    def tokens(self) -> Encoding: ...


AnyRow = TypeVar("AnyRow", bound=Sized)


def batch_by_length(rows: Sequence[AnyRow], config: TrainingConfig, chance: random.Random) -> list[list[AnyRow]]:
    """Batches of near lengths within the budget of padded tokens, in random order."""
    batches: list[list[AnyRow]] = []
    for start in range(0, len(rows), SHUFFLE_ROWS):
        batch: list[AnyRow] = []
        for row in sorted(rows[start : start + SHUFFLE_ROWS], key=lambda row: row.tokens.length):
            if batch and (
                row.tokens.length * (len(batch) + 1) > config.batch_tokens or len(batch) == config.batch_examples
            ):
                batches.append(batch)
                batch = []
            batch.append(row)
        batches.append(batch)
    chance.shuffle(batches)
    return batches


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch on the device: `ids`, `mask` and `types`, each (batch, length)."""

    ids: Tensor
    mask: Tensor
    types: Tensor


class DeviceCollator:
    """Encoding to tensors on the device."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer, device

    def __call__(self, tokens: Sequence[Encoding]) -> Inputs:
        batch = collate(tokens, self.tokenizer.pad_id)
        return Inputs(
            *(torch.from_numpy(array).to(self.device) for array in (batch.ids, batch.mask, batch.token_types))
        )


Objective = Callable[[list[Any]], Tensor]
"""What a step makes smaller, from the rows of its batch."""


Validate = Callable[[], Iterator[tuple[str, float]]]
"""Names and values of what is looked at while training."""


class Trainer:
    """One run: the optimiser's state, and the steps with their checkpoints, scalars and looks at validation rows."""

    def __init__(
        self, config: TrainingConfig, model: Network, objective: Objective, look: Validate, out: Path, steps: int
    ) -> None:
        self.config, self.out, self.steps = config, out, steps
        self.objective, self.validate_model = objective, look
        self.device = choose_device()
        self.use_bfloat16 = supports_bfloat16(self.device)
        if self.use_bfloat16 and self.device.type == "cpu":
            # The fused attention's gradient in bfloat16 is ten times slower there than the plain operators.
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
        """Linear warm-up, a constant stretch, linear annealing to zero, as a factor of the peak rate."""
        warm, left = self.config.warmup_steps, (self.steps - step) / (self.config.anneal * self.steps)
        return max(0.0, min(1.0, (step + 1) / max(1.0, warm), left))

    def run(self, batches: Sequence[list[Any]]) -> None:
        bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with bar, SummaryWriter(str(self.out / "tensorboard"), purge_step=self.step) as board:
            shown = bar.add_task("train", total=self.steps, completed=self.step, loss=0.0)
            while self.step < self.steps:
                loss = self.train_step(batches[self.step])
                if self.step % 20 == 0 and not bar.console.is_terminal:
                    bar.console.print(f"step {self.step} of {self.steps} loss {loss:.3f}", highlight=False)
                bar.update(shown, completed=self.step, loss=loss)
                board.add_scalar("loss", loss, self.step)
                board.add_scalar("learning_rate", self.schedule.get_last_lr()[0], self.step)
                if self.step % self.config.validate_every == 0 or self.step == self.steps:
                    for name, value in self.validate():
                        board.add_scalar(name, value, self.step)
                        bar.console.print(f"step {self.step} loss {loss:.3f} {name} {value:.4f}", highlight=False)
                if self.step % self.config.checkpoint_every == 0:
                    self.save()
        # Copies: layers may share a parameter, which safetensors refuses.
        save_file({name: tensor.clone() for name, tensor in self.model.state_dict().items()}, self.out / WEIGHTS)

    def train_step(self, rows: list[Any]) -> float:
        """One optimiser step; returns its loss."""
        # The step's own seed makes dropout the same whether or not the run was resumed.
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
            return list(self.validate_model())

    def precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.use_bfloat16)

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
        }
        with replace_atomically(self.out / CHECKPOINT) as part:
            torch.save(state, part)

    def resume(self) -> None:
        state = torch.load(self.out / CHECKPOINT, weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step = int(state["step"])


def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def supports_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than fp32: on a GPU, and on a CPU with matrix units (AMX)."""
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def parameter_groups(model: Network, config: TrainingConfig) -> list[dict[str, Any]]:
    """The head at its own rate, each encoder layer slower than the one above; word embeddings frozen if asked."""
    layers = len(model.encoder.encoder.layer)  # type: ignore[union-attr, arg-type]
    groups: dict[int, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if config.freeze_embeddings and name == WORD_EMBEDDINGS:
            parameter.requires_grad_(False)
            continue
        groups.setdefault(layer_depth(name, layers), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.head_rate if depth > layers else config.encoder_rate * config.layer_decay ** (layers - depth),
        }
        for depth, parameters in sorted(groups.items(), reverse=True)
    ]


def layer_depth(name: str, layers: int) -> int:
    """0 for embeddings, 1 to `layers` for encoder layers, one more for the head."""
    if "encoder.layer." in name:
        return int(name.split("encoder.layer.")[1].split(".")[0]) + 1
    return 0 if "embeddings" in name else layers + 1


def require_run(folder: Path) -> None:
    """Raise ConfigError unless `folder` holds what a finished training run leaves, and its base encoder is there."""
    missing = [name for name in (RUN, WEIGHTS, TOKENIZER) if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"{folder} is no finished training run: it lacks {', '.join(missing)}")
    try:
        check_base_encoder(str(json.loads((folder / RUN).read_text(encoding="utf-8"))["base"]))
    except BaseEncoderError as error:
        raise ConfigError(f"{folder} needs the base encoder that it was trained from: {error}") from error
