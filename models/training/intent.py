"""Training of the encoder for intents and replies: a teacher on labels, and a student in 8 bits.

Both read the same batches, of utterances with their intents and of dialogues with their replies. This module knows no
bundles: `models.export.intent` makes a bundle of the folder.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.bundle import TOKENIZER
from models.data.dialogues import ReplyExample
from models.networks.encoder import base_file, encoder_layers, load_base_encoder, pool_hidden
from models.networks.intent import IntentNetwork, ReplyRow, intent_loss, reply_loss
from models.networks.quantization import load_trained
from models.networks.student import FITTED_BATCHES, StatesFunction, compile_states, make_student
from models.text.encoding import Encoding, collate
from models.text.tokenizer import Tokenizer, adapt_tokenizer
from models.training.intent_batches import (
    BatchPlanner,
    IntentConfig,
    IntentDistillationConfig,
    IntentTrainingData,
    load_training_data,
    parse_intent_config,
    reply_candidates,
)
from models.training.losses import direction_loss, hidden_state_loss
from models.training.tracking import Tracker
from models.training.trainer import RUN, WEIGHTS, ConfigError, DeviceCollator, Inputs, Trainer, choose_device


@dataclass(frozen=True, slots=True)
class IntentRun:
    """A finished run, read from its folder. `layers` are the layers of the base that it has, None for all."""

    base: str
    layers: tuple[int, ...] | None
    labels: dict[str, tuple[str, ...]]
    config: IntentConfig


class TokenEncoder:
    """Maps encodings to a network's inputs, states and vectors."""

    def __init__(self, network: IntentNetwork, collator: DeviceCollator, compiled: bool) -> None:
        self._collator = collator
        self._states: StatesFunction = compile_states(network.states) if compiled else network.states

    def __call__(self, tokens: Sequence[Encoding]) -> tuple[Inputs, tuple[Tensor, ...], Tensor]:
        inputs = self._collator(tokens)
        states = self._states(inputs.ids, inputs.mask, inputs.types)
        return inputs, states, pool_hidden(states[-1], inputs.mask, inputs.types).float()


def intent_or_reply_loss(network: IntentNetwork, encode: TokenEncoder, rows: Sequence[Any]) -> Tensor:
    """Return the loss of a batch of IntentRow or of ReplyRow."""
    if isinstance(rows[0], ReplyRow):
        texts, correct = reply_candidates(rows)
        _, _, dialogues = encode([row.tokens for row in rows])
        _, _, replies = encode(texts)
        return reply_loss(network, dialogues, replies, torch.tensor(correct, device=replies.device))
    _, _, vectors = encode([row.tokens for row in rows])
    return intent_loss(network, vectors, rows)


class IntentDistillationObjective:
    """The loss of a student on labels and on its teacher's directions and states."""

    def __init__(
        self,
        student: IntentNetwork,
        teacher: IntentNetwork,
        config: IntentDistillationConfig,
        encode_student: TokenEncoder,
        encode_teacher: TokenEncoder,
    ) -> None:
        self._student, self._config = student, config
        self._encode_student, self._encode_teacher = encode_student, encode_teacher
        teacher.requires_grad_(False).eval()

    def __call__(self, rows: list[Any]) -> Tensor:
        if isinstance(rows[0], ReplyRow):
            texts, correct = reply_candidates(rows)
            dialogue_distance, dialogues = self._imitate([row.tokens for row in rows])
            reply_distance, replies = self._imitate(texts)
            labelled = reply_loss(self._student, dialogues, replies, torch.tensor(correct, device=replies.device))
            return self._config.labels_weight * labelled + (dialogue_distance + reply_distance) / 2
        distance, vectors = self._imitate([row.tokens for row in rows])
        return self._config.labels_weight * intent_loss(self._student, vectors, rows) + distance

    def _imitate(self, tokens: Sequence[Encoding]) -> tuple[Tensor, Tensor]:
        """Return the loss of the student's distance to its teacher on these texts, and the student's vectors."""
        with torch.no_grad():
            _, teacher_states, target = self._encode_teacher(tokens)
        inputs, student_states, vectors = self._encode_student(tokens)
        pairs = [
            (student_states[index], teacher_states[layer + 1]) for index, layer in enumerate(self._config.layers, 1)
        ]
        states = torch.stack([hidden_state_loss(*pair, inputs.mask) for pair in pairs]).mean()
        direction = direction_loss(vectors, target)
        return self._config.states_weight * states + self._config.direction_weight * direction, vectors


class IntentValidation:
    """Accuracy of each label set by the nearest prototype, and of each reply set by the best of the agent's options."""

    def __init__(
        self, network: IntentNetwork, collator: DeviceCollator, data: IntentTrainingData, rows: int, seed: int
    ) -> None:
        rng = random.Random(seed)
        self._network, self._tokenizer = network, collator.tokenizer
        self._encode = TokenEncoder(network, collator, compiled=False)
        self._labels = data.labels
        in_scope = {name: [row for row in split if row.label is not None] for name, split in data.held_out.items()}
        self._utterances = {name: rng.sample(split, min(rows, len(split))) for name, split in in_scope.items()}
        choices = {
            name: [example for example in split if len(example.options) > 1]
            for name, split in data.held_out_replies.items()
        }
        self._replies = {name: rng.sample(split, min(rows, len(split))) for name, split in choices.items() if split}

    def __call__(self) -> Iterator[tuple[str, float]]:
        for name, rows in self._utterances.items():
            vectors = self._vectors(
                [self._tokenizer.encode_dialogue(row.turns[-1].text, row.turns[:-1])[0] for row in rows]
            )
            best = (vectors @ nn.functional.normalize(self._network.prototypes[name]).T).argmax(dim=-1).tolist()
            correct = [self._labels[name][index] == row.label for index, row in zip(best, rows, strict=True)]
            yield f"accuracy/{name}", sum(correct) / len(correct)
        for name, examples in self._replies.items():
            yield f"first/{name}", sum(map(self._ranks_template_first, examples)) / len(examples)

    def _ranks_template_first(self, example: ReplyExample) -> bool:
        tokens = self._tokenizer.encode_dialogue(example.turns[-1].text, example.turns[:-1])[0]
        (dialogue,) = self._vectors([tokens])
        replies = self._vectors([self._tokenizer.encode(text) for text in example.options])
        query, options = self._network.dialogue(dialogue), self._network.reply(replies)
        best = int(nn.functional.cosine_similarity(query[None], options).argmax())
        return example.options[best] == example.template

    def _vectors(self, tokens: Sequence[Encoding]) -> Tensor:
        return torch.cat([self._encode(tokens[start : start + 50])[2] for start in range(0, len(tokens), 50)])


def train_intents(config: IntentConfig, base: str, data: Path, out: Path, tracker: Tracker | None = None) -> Path:
    """Train a teacher, and return `out` with `model.safetensors`, `tokenizer.json` and `training.json`."""
    _prepare(config, out)
    adapt_tokenizer(base_file(base, TOKENIZER), out / TOKENIZER)
    tokenizer, training_data = Tokenizer(out / TOKENIZER, config.max_tokens), load_training_data(config, data)
    batches = BatchPlanner(config, tokenizer, training_data).batches()
    encoder = load_base_encoder(base)
    network = IntentNetwork(
        encoder, encoder.config.hidden_size, {name: len(labels) for name, labels in training_data.labels.items()}
    )
    collator = DeviceCollator(tokenizer, choose_device())
    encode = TokenEncoder(network, collator, config.compiled)
    validate = IntentValidation(network, collator, training_data, config.validation_rows, config.seed)
    trainer = Trainer(
        config, network, lambda rows: intent_or_reply_loss(network, encode, rows), validate, out, len(batches), tracker
    )
    trainer.run(batches)
    _save_run(out, base, None, training_data.labels, config)
    return out


def distill_intents(
    config: IntentConfig,
    student: IntentDistillationConfig,
    teacher: Path,
    data: Path,
    out: Path,
    tracker: Tracker | None = None,
) -> Path:
    """Train a student of the training folder `teacher`, and return `out`, a training folder like it."""
    _prepare(config, out)
    copyfile(teacher / TOKENIZER, out / TOKENIZER)
    teacher_run = load_intent_run(teacher)
    tokenizer, training_data = Tokenizer(out / TOKENIZER, config.max_tokens), load_training_data(config, data)
    if teacher_run.labels != training_data.labels:
        raise ConfigError("the teacher was trained on other intents than the configuration's; name the same label sets")
    batches = BatchPlanner(config, tokenizer, training_data).batches()
    network = load_intent_weights(teacher, teacher_run)
    fitted = [collate([row.tokens for row in rows], tokenizer.pad_id) for rows in batches[:FITTED_BATCHES]]
    small = make_student(
        network,
        student.layers,
        [
            (torch.from_numpy(batch.ids), torch.from_numpy(batch.mask), torch.from_numpy(batch.token_types))
            for batch in fitted
        ],
    )
    collator = DeviceCollator(tokenizer, choose_device())
    network.to(collator.device)
    encode_student, encode_teacher = (TokenEncoder(model, collator, config.compiled) for model in (small, network))
    validate = IntentValidation(small, collator, training_data, config.validation_rows, config.seed)
    objective = IntentDistillationObjective(small, network, student, encode_student, encode_teacher)
    Trainer(config, small, objective, validate, out, len(batches), tracker).run(batches)
    base_layers = teacher_run.layers or tuple(range(len(encoder_layers(network))))
    _save_run(out, teacher_run.base, [base_layers[layer] for layer in student.layers], training_data.labels, config)
    return out


def load_intent_run(folder: Path) -> IntentRun:
    content = json.loads((folder / RUN).read_text(encoding="utf-8"))
    layers = content["layers"] and tuple(content["layers"])
    labels = {name: tuple(names) for name, names in content["labels"].items()}
    return IntentRun(content["base"], layers, labels, parse_intent_config(content["config"]))


def load_intent_weights(folder: Path, run: IntentRun) -> IntentNetwork:
    """Load the trained network of a training folder, in evaluation mode."""
    encoder = load_base_encoder(run.base)
    network = IntentNetwork(
        encoder, encoder.config.hidden_size, {name: len(labels) for name, labels in run.labels.items()}
    )
    return load_trained(network, load_file(folder / WEIGHTS), run.layers)


def _prepare(config: IntentConfig, out: Path) -> None:
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)


def _save_run(
    out: Path, base: str, layers: Sequence[int] | None, labels: dict[str, tuple[str, ...]], config: IntentConfig
) -> None:
    content = {"base": base, "layers": layers, "labels": labels, "config": asdict(config)}
    (out / RUN).write_text(json.dumps(content, indent=1), encoding="utf-8")
