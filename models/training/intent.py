"""Training the encoder of intents and replies: a teacher on labels, and a student of it that rounds as the graph does.

Both read the same batches, of utterances with their intents and of dialogues with their replies. Knows nothing of
bundles: `models.export.intent` makes one of the folder.
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
from models.networks.student import FITTED_BATCHES, States, compile_states, make_student
from models.text.encoding import Encoding, collate
from models.text.tokenizer import Tokenizer, adapt_tokenizer
from models.training.intent_batches import (
    BatchPlanner,
    IntentConfig,
    IntentDistillation,
    IntentTrainingData,
    intent_config_of,
    load_training_data,
    reply_candidates,
)
from models.training.losses import direction_loss, hidden_state_loss
from models.training.trainer import RUN, WEIGHTS, ConfigError, DeviceCollator, Inputs, Trainer, choose_device


@dataclass(frozen=True, slots=True)
class IntentRun:
    """A finished run, as its folder tells of it; `layers` are those of the base that it has, None for all."""

    base: str
    layers: tuple[int, ...] | None
    labels: dict[str, tuple[str, ...]]
    config: IntentConfig


class IntentObjective:
    """A network's states and vectors of tokens."""

    def __init__(self, network: IntentNetwork, feed: DeviceCollator, compile_it: bool) -> None:
        self._feed = feed
        self._states: States = compile_states(network.states) if compile_it else network.states

    def __call__(self, tokens: Sequence[Encoding]) -> tuple[Inputs, tuple[Tensor, ...], Tensor]:
        inputs = self._feed(tokens)
        states = self._states(inputs.ids, inputs.mask, inputs.types)
        return inputs, states, pool_hidden(states[-1], inputs.mask, inputs.types).float()


def labels_loss(network: IntentNetwork, vectors: IntentObjective, rows: Sequence[Any]) -> Tensor:
    if isinstance(rows[0], ReplyRow):
        texts, right = reply_candidates(rows)
        _, _, dialogues = vectors([row.tokens for row in rows])
        _, _, replies = vectors(texts)
        return reply_loss(network, dialogues, replies, torch.tensor(right, device=replies.device))
    _, _, found = vectors([row.tokens for row in rows])
    return intent_loss(network, found, rows)


class IntentDistillationObjective:
    """The loss of a student beside its teacher: labels, the teacher's direction and its states."""

    def __init__(
        self,
        student: IntentNetwork,
        teacher: IntentNetwork,
        config: IntentDistillation,
        own: IntentObjective,
        shown: IntentObjective,
    ) -> None:
        self._student, self._config, self._own, self._shown = student, config, own, shown
        teacher.requires_grad_(False).eval()

    def __call__(self, rows: list[Any]) -> Tensor:
        if isinstance(rows[0], ReplyRow):
            texts, right = reply_candidates(rows)
            following, dialogues = self._follow([row.tokens for row in rows])
            also_following, replies = self._follow(texts)
            labelled = reply_loss(self._student, dialogues, replies, torch.tensor(right, device=replies.device))
            return self._config.labels_weight * labelled + (following + also_following) / 2
        following, vectors = self._follow([row.tokens for row in rows])
        return self._config.labels_weight * intent_loss(self._student, vectors, rows) + following

    def _follow(self, tokens: Sequence[Encoding]) -> tuple[Tensor, Tensor]:
        """How far the student is from its teacher on these texts, and its vectors."""
        with torch.no_grad():
            _, shown, target = self._shown(tokens)
        inputs, own, vectors = self._own(tokens)
        pairs = [(own[place], shown[layer + 1]) for place, layer in enumerate(self._config.layers, 1)]
        states = torch.stack([hidden_state_loss(*pair, inputs.mask) for pair in pairs]).mean()
        direction = direction_loss(vectors, target)
        return self._config.states_weight * states + self._config.direction_weight * direction, vectors


class IntentValidation:
    """Accuracy of each set by the nearest prototype, and how often the reply given is first among those offered."""

    def __init__(
        self, network: IntentNetwork, feed: DeviceCollator, material: IntentTrainingData, rows: int, seed: int
    ) -> None:
        chance = random.Random(seed)
        self._network, self._vectors, self._tokenizer = network, IntentObjective(network, feed, False), feed.tokenizer
        self._labels = material.labels
        known = {name: [one for one in own if one.label is not None] for name, own in material.held_out.items()}
        self._utterances = {name: chance.sample(own, min(rows, len(own))) for name, own in known.items()}
        offered = {name: [e for e in own if len(e.options) > 1] for name, own in material.held_out_exchanges.items()}
        self._exchanges = {name: chance.sample(own, min(rows, len(own))) for name, own in offered.items() if own}

    def __call__(self) -> Iterator[tuple[str, float]]:
        for name, rows in self._utterances.items():
            vectors = self._of([self._tokenizer.encode_dialogue(one.turns[-1].text, one.turns[:-1])[0] for one in rows])
            best = (vectors @ nn.functional.normalize(self._network.prototypes[name]).T).argmax(dim=-1).tolist()
            right = [self._labels[name][place] == one.label for place, one in zip(best, rows, strict=True)]
            yield f"accuracy/{name}", sum(right) / len(right)
        for name, exchanges in self._exchanges.items():
            yield f"first/{name}", sum(map(self._first, exchanges)) / len(exchanges)

    def _first(self, one: ReplyExample) -> bool:
        (dialogue,) = self._of([self._tokenizer.encode_dialogue(one.turns[-1].text, one.turns[:-1])[0]])
        replies = self._of([self._tokenizer.encode(text) for text in one.options])
        said, offered = self._network.dialogue(dialogue), self._network.reply(replies)
        best = int(nn.functional.cosine_similarity(said[None], offered).argmax())
        return one.options[best] == one.template

    def _of(self, tokens: Sequence[Encoding]) -> Tensor:
        return torch.cat([self._vectors(tokens[start : start + 50])[2] for start in range(0, len(tokens), 50)])


def train_intents(config: IntentConfig, base: str, data: Path, out: Path) -> Path:
    """The teacher; returns `out` with `model.safetensors`, `tokenizer.json` and `training.json`."""
    _begin(config, out)
    adapt_tokenizer(base_file(base, TOKENIZER), out / TOKENIZER)
    tokenizer, material = Tokenizer(out / TOKENIZER, config.max_tokens), load_training_data(config, data)
    batches = BatchPlanner(config, tokenizer, material).batches()
    encoder = load_base_encoder(base)
    network = IntentNetwork(
        encoder, encoder.config.hidden_size, {name: len(own) for name, own in material.labels.items()}
    )
    feed = DeviceCollator(tokenizer, choose_device())
    vectors = IntentObjective(network, feed, config.compiled)
    look = IntentValidation(network, feed, material, config.validation_rows, config.seed)
    Trainer(config, network, lambda rows: labels_loss(network, vectors, rows), look, out, len(batches)).run(batches)
    _save(out, base, None, material.labels, config)
    return out


def distill_intents(config: IntentConfig, student: IntentDistillation, teacher: Path, data: Path, out: Path) -> Path:
    """A student of the training folder `teacher`; returns `out`, a training folder like it."""
    _begin(config, out)
    copyfile(teacher / TOKENIZER, out / TOKENIZER)
    taught = load_intent_run(teacher)
    tokenizer, material = Tokenizer(out / TOKENIZER, config.max_tokens), load_training_data(config, data)
    if taught.labels != material.labels:
        raise ConfigError("the teacher knows other intents than the configuration's sets have")
    batches = BatchPlanner(config, tokenizer, material).batches()
    network = load_intent_weights(teacher, taught)
    fitted = [collate([row.tokens for row in rows], tokenizer.pad_id) for rows in batches[:FITTED_BATCHES]]
    small = make_student(
        network,
        student.layers,
        [(torch.from_numpy(b.ids), torch.from_numpy(b.mask), torch.from_numpy(b.token_types)) for b in fitted],
    )
    feed = DeviceCollator(tokenizer, choose_device())
    network.to(feed.device)
    own, shown = IntentObjective(small, feed, config.compiled), IntentObjective(network, feed, config.compiled)
    look = IntentValidation(small, feed, material, config.validation_rows, config.seed)
    objective = IntentDistillationObjective(small, network, student, own, shown)
    Trainer(config, small, objective, look, out, len(batches)).run(batches)
    kept = taught.layers or tuple(range(len(encoder_layers(network))))
    _save(out, taught.base, [kept[layer] for layer in student.layers], material.labels, config)
    return out


def load_intent_run(folder: Path) -> IntentRun:
    content = json.loads((folder / RUN).read_text(encoding="utf-8"))
    layers = content["layers"] and tuple(content["layers"])
    labels = {name: tuple(own) for name, own in content["labels"].items()}
    return IntentRun(content["base"], layers, labels, intent_config_of(content["config"]))


def load_intent_weights(folder: Path, run: IntentRun) -> IntentNetwork:
    """The trained network of a training folder, ready to evaluate."""
    encoder = load_base_encoder(run.base)
    network = IntentNetwork(encoder, encoder.config.hidden_size, {name: len(own) for name, own in run.labels.items()})
    return load_trained(network, load_file(folder / WEIGHTS), run.layers)


def _begin(config: IntentConfig, out: Path) -> None:
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)


def _save(
    out: Path, base: str, layers: Sequence[int] | None, labels: dict[str, tuple[str, ...]], config: IntentConfig
) -> None:
    content = {"base": base, "layers": layers, "labels": labels, "config": asdict(config)}
    (out / RUN).write_text(json.dumps(content, indent=1), encoding="utf-8")
