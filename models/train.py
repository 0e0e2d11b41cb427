"""Fine-tuning: a configuration, a base encoder and data in, a folder with weights and tokenizer out.

Seeds are fixed and every step's batch follows from the seed alone, so a killed run resumes from its newest
checkpoint as if it had not stopped. Knows nothing of bundles: `models.export` makes one of the folder.
"""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from sklearn.metrics import f1_score
from torch import Tensor, xlogy
from torch.nn.functional import log_softmax
from torch.utils.tensorboard import SummaryWriter

from models.bundle import TOKENIZER
from models.data import Dataset, Example, epoch, read, without_leaks
from models.graph import LOG_STEP
from models.network import Classifier, Network, base_file, from_base, keep_layers
from models.quantize import quantize_encoder
from models.tasks import TASKS, Task
from models.tokens import Tokenizer, Tokens, adapt_tokenizer, collate

WEIGHTS, CHECKPOINT, RUN, NOTES = "model.safetensors", "checkpoint.pt", "training.json", "notes.md"
CONFIGS = Path(__file__).parent / "configs"
SHUFFLE_ROWS = 2048
"""Rows that are sorted by length together: enough for little padding, few enough for random batches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(Schedule):
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


class ConfigError(ValueError):
    """A configuration that lacks a field or has one too many."""


@dataclass(frozen=True, slots=True)
class Run:
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


def load_run(folder: Path) -> Run:
    content = json.loads((folder / RUN).read_text(encoding="utf-8"))
    notes = folder / NOTES
    written = notes.read_text(encoding="utf-8").strip() if notes.exists() else ""
    layers = content["layers"] and tuple(content["layers"])
    texts = tuple(dataset_of(row) for row in content["texts"])
    return Run(content["base"], layers, texts, config_of(content["config"]), written)


@dataclass(frozen=True, slots=True)
class Row:
    """One tokenised training row: its label's index and which labels it was chosen among, shape (labels,).

    A row without a label is for distillation alone.
    """

    tokens: Tokens
    label: int | None
    among: tuple[bool, ...]
    smoothing: float
    bootstrap: float
    absent_share: float


class Sized(Protocol):
    @property
    def tokens(self) -> Tokens: ...


AnyRow = TypeVar("AnyRow", bound=Sized)


def train(config: Config, base: str, data: Path, out: Path) -> Path:
    """Train, and return the folder `out` with `model.safetensors`, `tokenizer.json` and `training.json`."""
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    adapt_tokenizer(base_file(base, TOKENIZER), out / TOKENIZER)
    task = TASKS[config.task]
    tokenizer = Tokenizer(out / TOKENIZER, config.max_tokens)
    validation = [row for dataset in config.datasets for row in read(data, dataset, "validation")]
    training = [row for dataset in config.datasets for row in read(data, dataset, "train")]
    training = without_leaks(training, validation)
    batches = plan(config, config.datasets, task, tokenizer, training)
    model = from_base(base, task)
    feed = Feed(tokenizer, device())
    looked_at = Validation(model, task, feed, sample(validation, config))
    Trainer(config, model, Supervised(model, feed), looked_at, out, len(batches)).run(batches)
    save_run(out, base, None, (), config)
    return out


def save_run(out: Path, base: str, layers: Sequence[int] | None, texts: Sequence[Dataset], config: Config) -> None:
    content = {"base": base, "layers": layers, "texts": [asdict(source) for source in texts], "config": asdict(config)}
    (out / RUN).write_text(json.dumps(content, indent=1), encoding="utf-8")


def plan(
    config: Config, datasets: Sequence[Dataset], task: Task, tokenizer: Tokenizer, training: Sequence[Example]
) -> list[list[Row]]:
    """Every batch of the whole run, in order."""
    noise = {dataset.name: dataset for dataset in datasets}
    batches: list[list[Row]] = []
    for number in range(ceil(config.epochs)):
        rows = []
        for example in epoch(training, datasets, config.seed, number, config.augment):
            among = tuple(label in example.among for label in task.labels)
            tokens = tokenizer.encode(example.text, example.entity)
            of = noise[example.dataset]
            label = None if example.label is None else task.labels.index(example.label)
            rows.append(Row(tokens, label, among, of.smoothing, of.bootstrap, of.absent_share))
        part = by_length(rows, config, random.Random(config.seed + number))
        batches += part[: round(min(1.0, config.epochs - number) * len(part))]
    return batches


def by_length(rows: Sequence[AnyRow], config: Schedule, chance: random.Random) -> list[list[AnyRow]]:
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


def sample(validation: Sequence[Example], config: Config) -> dict[str, list[Example]]:
    """The rows of each set that are looked at while training."""
    rows: dict[str, list[Example]] = {}
    for example in validation:
        rows.setdefault(example.dataset, []).append(example)
    chance = random.Random(config.seed)
    return {name: chance.sample(own, min(len(own), config.validation_rows)) for name, own in rows.items()}


def loss_of(logits: Tensor, label: Tensor, among: Tensor, smoothing: Tensor, bootstrap: Tensor) -> Tensor:
    """Mean cross-entropy over the labels each row was chosen among.

    logits (batch, labels); label (batch,); among (batch, labels) bool; smoothing, bootstrap (batch,). A label outside
    `among` takes no part: a two-class row says nothing about the third. The target is
    (1 - s - b) one-hot + s uniform + b own answer (Szegedy et al. 2016; Reed et al. 2015, soft bootstrapping).
    """
    scores = log_softmax(logits.masked_fill(~among, -1e4), dim=-1)
    own = scores.detach().exp()
    smooth, boot = smoothing.unsqueeze(1), bootstrap.unsqueeze(1)
    one_hot = torch.zeros_like(scores).scatter_(1, label.unsqueeze(1), 1.0)
    target = (1 - smooth - boot) * one_hot + smooth * among / among.sum(1, keepdim=True) + boot * own
    return -(target * scores).sum(dim=1).mean()


def absent_loss(logits: Tensor, among: Tensor, share: Tensor) -> Tensor:
    """How far the labels that some rows could not have are from their expected share over the batch.

    logits, among as in `loss_of`; share (batch,). KL(share || mean probability of the absent labels), for the rows
    that have any, weighted by their part of the batch: expectation regularisation (Mann and McCallum 2007). It says of
    no single text that it is not neutral, only that a set of opinions is not mostly neutral; without it a label that
    the loss of such a set never names drifts freely there.
    """
    rows = ~among.all(dim=1)
    if not rows.any():
        return logits.new_zeros(())
    expected = share[rows].mean()
    found = (logits.softmax(dim=-1) * ~among)[rows].sum(dim=1).mean().clamp(1e-6, 1 - 1e-6)
    divergence = xlogy(expected, expected / found) + xlogy(1 - expected, (1 - expected) / (1 - found))
    return divergence * rows.float().mean()


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch on the device: `ids`, `mask` and `types`, each (batch, length)."""

    ids: Tensor
    mask: Tensor
    types: Tensor


class Feed:
    """Tokens to tensors on the device."""

    def __init__(self, tokenizer: Tokenizer, device: torch.device) -> None:
        self.tokenizer, self.device = tokenizer, device

    def __call__(self, tokens: Sequence[Tokens]) -> Inputs:
        batch = collate(tokens, self.tokenizer.pad)
        return Inputs(*(torch.from_numpy(array).to(self.device) for array in (batch.ids, batch.mask, batch.types)))


Objective = Callable[[list[Any]], Tensor]
"""What a step makes smaller, from the rows of its batch."""

Look = Callable[[], Iterator[tuple[str, float]]]
"""Names and values of what is looked at while training."""


class Supervised:
    """The labels' loss of a network."""

    def __init__(self, model: Classifier, feed: Feed) -> None:
        self._model, self._feed = model, feed

    def __call__(self, rows: Sequence[Row]) -> Tensor:
        inputs = self._feed([row.tokens for row in rows])
        return labelled_loss(self._model(inputs.ids, inputs.mask, inputs.types).float(), rows)


class Validation:
    """Macro-F1 of each set over the labels that it has, answers chosen among all the task's labels."""

    def __init__(self, model: Classifier, task: Task, feed: Feed, rows: dict[str, list[Example]]) -> None:
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
    loss = loss_of(logits[chosen], labels, among, noise[:, 0], noise[:, 1])
    return loss + absent_loss(logits[chosen], among, noise[:, 2])


class Trainer:
    """One run: the optimiser's state, and the steps with their checkpoints, scalars and looks at validation rows."""

    def __init__(
        self, config: Schedule, model: Network, objective: Objective, look: Look, out: Path, steps: int
    ) -> None:
        self.config, self.out, self.steps = config, out, steps
        self.objective, self.look = objective, look
        self.device = device()
        self.narrow = multiplies_bfloat16(self.device)
        if self.narrow and self.device.type == "cpu":
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
                loss = self.advance(batches[self.step])
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

    def advance(self, rows: list[Any]) -> float:
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
            return list(self.look())

    def precision(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.narrow)

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "step": self.step,
        }
        part = self.out / f"{CHECKPOINT}.part"
        torch.save(state, part)
        part.replace(self.out / CHECKPOINT)

    def resume(self) -> None:
        state = torch.load(self.out / CHECKPOINT, weights_only=True, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step = int(state["step"])


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than fp32: on a GPU, and on a CPU with matrix units (AMX)."""
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def parameter_groups(model: Network, config: Schedule) -> list[dict[str, Any]]:
    """The head at its own rate, each encoder layer slower than the one above; word embeddings frozen if asked."""
    layers = len(model.encoder.encoder.layer)  # type: ignore[union-attr, arg-type]
    groups: dict[int, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if config.freeze_embeddings and "word_embeddings" in name:
            parameter.requires_grad_(False)
            continue
        groups.setdefault(depth_of(name, layers), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": config.head_rate if depth > layers else config.encoder_rate * config.layer_decay ** (layers - depth),
        }
        for depth, parameters in sorted(groups.items(), reverse=True)
    ]


def depth_of(name: str, layers: int) -> int:
    """0 for embeddings, 1 to `layers` for encoder layers, one more for the head."""
    if "encoder.layer." in name:
        return int(name.split("encoder.layer.")[1].split(".")[0]) + 1
    return 0 if "embeddings" in name else layers + 1


def load_weights(folder: Path, run: Run, task: Task) -> Classifier:
    """The trained network of a training folder, ready to evaluate."""
    model = from_base(run.base, task)
    if run.layers is not None:
        keep_layers(model, run.layers)
    weights = load_file(folder / WEIGHTS)
    if any(name.endswith(LOG_STEP) for name in weights):
        quantize_encoder(model)
    model.load_state_dict(weights)
    return model.eval()
