"""Training the encoder of intents and replies: a teacher on labels, and a student of it that rounds as the graph does.

Both read the same batches, of utterances with their intents and of dialogues with their replies. Knows nothing of
bundles: `models.export_intents` makes one of the folder.
"""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from models.bundle import TOKENIZER
from models.data import drawn
from models.dialogues import (
    Exchange,
    LabelSet,
    ReplySet,
    Utterance,
    read_exchanges,
    read_utterances,
    sets_of,
    with_context,
    without_held_out,
)
from models.distill import FITTED_BATCHES, States, compiled, states_loss, student_of
from models.graph import LOG_STEP
from models.head_training import check
from models.heads import HeadError
from models.intents import (
    OUTSIDE,
    IntentNetwork,
    IntentRow,
    ReplyRow,
    direction_loss,
    intent_loss,
    reply_loss,
)
from models.network import base_file, encoder_layers, encoder_of, keep_layers, pool
from models.quantize import quantize_encoder
from models.tokens import Tokenizer, Tokens, adapt_tokenizer, collate
from models.train import RUN, WEIGHTS, ConfigError, Feed, Inputs, Schedule, Trainer, by_length, device

REPLY_SIDE = 2
"""A batch of dialogues has this many times fewer rows than its tokens allow: each brings its reply and others."""

OWN_ROWS = 9000
"""Rows of a team's own examples in an epoch, at least: few are seen often."""

MOST_OTHERS = 4
"""Replies that were offered and not given, of one dialogue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentConfig(Schedule):
    """`models/configs/intent.toml` explains each field."""

    unrelated: float
    compiled: bool
    label_sets: tuple[LabelSet, ...]
    reply_sets: tuple[ReplySet, ...]


@dataclass(frozen=True, slots=True)
class IntentDistillation:
    layers: tuple[int, ...]
    labels_weight: float
    states_weight: float
    direction_weight: float


@dataclass(frozen=True, slots=True)
class IntentRun:
    """A finished run, as its folder tells of it; `layers` are those of the base that it has, None for all."""

    base: str
    layers: tuple[int, ...] | None
    labels: dict[str, tuple[str, ...]]
    config: IntentConfig


def read_intent_config(path: Path) -> tuple[IntentConfig, IntentDistillation]:
    """Raises ConfigError naming the field when one is missing or unknown."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        own = content.pop("student")
        return intent_config_of(content), IntentDistillation(**{**own, "layers": tuple(own["layers"])})
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the configuration cannot be used: {error}") from error


def intent_config_of(content: dict[str, Any]) -> IntentConfig:
    label_sets, reply_sets = sets_of(content)
    return IntentConfig(**{**content, "label_sets": label_sets, "reply_sets": reply_sets})


def with_examples(config: IntentConfig, name: str, file: Path) -> IntentConfig:
    """The same with a team's own examples as one more label set, of which an epoch sees as much as of banking77."""
    if name in {source.name for source in config.label_sets}:
        raise ConfigError(f"{name} is a label set of the configuration already; give yours another name")
    own = LabelSet(name, str(file.resolve()), "examples", "mixed", "own")
    train, held_out = (read_utterances(Path(), own, part) for part in ("train", "validation"))
    try:
        check([str(one.label) for one in train])
        if len(held_out) < 2:
            raise HeadError(f"there are {len(train) + len(held_out)} examples; at least 20 are needed")
    except HeadError as error:
        raise ConfigError(f"{file.name}, of which every tenth example is kept to measure: {error}") from None
    own = replace(own, share=max(1.0, OWN_ROWS / len(train)))
    return replace(config, label_sets=(*config.label_sets, own))


@dataclass(frozen=True, slots=True)
class Material:
    """What is trained on, and what is looked at meanwhile."""

    utterances: list[Utterance]
    exchanges: dict[str, list[Exchange]]
    held_out: dict[str, list[Utterance]]
    held_out_exchanges: dict[str, list[Exchange]]
    labels: dict[str, tuple[str, ...]]


def gather(config: IntentConfig, data: Path) -> Material:
    train, held_out = [], {}
    for source in config.label_sets:
        held_out[source.name] = read_utterances(data, source, "validation")
        train += read_utterances(data, source, "train")
    train = without_held_out(train, (one for own in held_out.values() for one in own))
    labels = {
        source.name: tuple(sorted({one.label for one in train if one.name == source.name and one.label is not None}))
        for source in config.label_sets
    }
    exchanges, others = (
        {source.name: read_exchanges(data, source, part) for source in config.reply_sets}
        for part in ("train", "validation")
    )
    return Material(train, exchanges, held_out, others, labels)


class Planner:
    """Every batch of the whole run, in order, from the seed alone."""

    def __init__(self, config: IntentConfig, tokenizer: Tokenizer, material: Material) -> None:
        self._config, self._tokenizer, self._material = config, tokenizer, material
        self._known: dict[str, Tokens] = {}
        every = [turn for own in material.exchanges.values() for one in own[::7] for turn in one.turns[-2:]]
        self._pool = every + [one.turns[-1] for one in material.utterances[::11]]

    def batches(self) -> list[list[Any]]:
        planned: list[list[Any]] = []
        for number in range(ceil(self._config.epochs)):
            part = self._epoch(number)
            planned += part[: round(min(1.0, self._config.epochs - number) * len(part))]
        return planned

    def _epoch(self, number: int) -> list[list[Any]]:
        config, material = self._config, self._material
        chance = random.Random(config.seed + number)
        rows: list[IntentRow] = []
        for source in config.label_sets:
            own = [one for one in material.utterances if one.name == source.name]
            rows += [self._intent_row(chance, one) for one in drawn(own, source.share, config.seed, number)]
        chance.shuffle(rows)
        batches: list[list[Any]] = list(by_length(rows, config, chance))
        for replies in config.reply_sets:
            chosen = drawn(material.exchanges[replies.name], replies.share, config.seed, number)
            batches += self._reply_batches(chance, [self._reply_row(chance, one) for one in chosen])
        chance.shuffle(batches)
        return batches

    def _intent_row(self, chance: random.Random, one: Utterance) -> IntentRow:
        """A single text stands after turns that have nothing to do with it, now and then."""
        if len(one.turns) == 1 and chance.random() < self._config.unrelated:
            one = with_context(chance, one, self._pool)
        tokens, _ = self._tokenizer.encode_dialogue(one.turns[-1].text, one.turns[:-1])
        label = OUTSIDE if one.label is None else self._material.labels[one.name].index(one.label)
        return IntentRow(tokens, one.name, label)

    def _reply_row(self, chance: random.Random, one: Exchange) -> ReplyRow:
        """The reply as it was said, or as its template."""
        tokens, _ = self._tokenizer.encode_dialogue(one.turns[-1].text, one.turns[:-1])
        others = [text for text in one.options if text != one.template]
        said = one.reply if one.template is None or chance.random() < 0.3 else one.template
        offered = chance.sample(others, min(MOST_OTHERS, len(others)))
        return ReplyRow(tokens, self._encode(said), tuple(self._encode(text) for text in offered))

    def _encode(self, text: str) -> Tokens:
        if text not in self._known:
            self._known[text] = self._tokenizer.encode(text)
        return self._known[text]

    def _reply_batches(self, chance: random.Random, rows: Sequence[ReplyRow]) -> list[list[Any]]:
        batches: list[list[Any]] = []
        for batch in by_length(rows, self._config, chance):
            size = max(2, len(batch) // REPLY_SIDE)
            batches += [batch[start : start + size] for start in range(0, len(batch), size)]
        return batches


class Vectors:
    """A network's states and vectors of tokens."""

    def __init__(self, network: IntentNetwork, feed: Feed, compile_it: bool) -> None:
        self._feed = feed
        self._states: States = compiled(network.states) if compile_it else network.states

    def __call__(self, tokens: Sequence[Tokens]) -> tuple[Inputs, tuple[Tensor, ...], Tensor]:
        inputs = self._feed(tokens)
        states = self._states(inputs.ids, inputs.mask, inputs.types)
        return inputs, states, pool(states[-1], inputs.mask, inputs.types).float()


def labels_loss(network: IntentNetwork, vectors: Vectors, rows: Sequence[Any]) -> Tensor:
    if isinstance(rows[0], ReplyRow):
        texts, right = candidates(rows)
        _, _, dialogues = vectors([row.tokens for row in rows])
        _, _, replies = vectors(texts)
        return reply_loss(network, dialogues, replies, torch.tensor(right, device=replies.device))
    _, _, found = vectors([row.tokens for row in rows])
    return intent_loss(network, found, rows)


def candidates(rows: Sequence[ReplyRow]) -> tuple[list[Tokens], list[int]]:
    """All replies of a batch, each text once, and for each row the place of its own."""
    places: dict[bytes, int] = {}
    texts: list[Tokens] = []

    def place(tokens: Tokens) -> int:
        known = places.setdefault(tokens.ids.tobytes(), len(texts))
        if known == len(texts):
            texts.append(tokens)
        return known

    right = [place(row.reply) for row in rows]
    for row in rows:
        for other in row.others:
            place(other)
    return texts, right


class Taught:
    """The loss of a student beside its teacher: labels, the teacher's direction and its states."""

    def __init__(
        self, student: IntentNetwork, teacher: IntentNetwork, config: IntentDistillation, own: Vectors, shown: Vectors
    ) -> None:
        self._student, self._config, self._own, self._shown = student, config, own, shown
        teacher.requires_grad_(False).eval()

    def __call__(self, rows: list[Any]) -> Tensor:
        if isinstance(rows[0], ReplyRow):
            texts, right = candidates(rows)
            following, dialogues = self._follow([row.tokens for row in rows])
            also_following, replies = self._follow(texts)
            labelled = reply_loss(self._student, dialogues, replies, torch.tensor(right, device=replies.device))
            return self._config.labels_weight * labelled + (following + also_following) / 2
        following, vectors = self._follow([row.tokens for row in rows])
        return self._config.labels_weight * intent_loss(self._student, vectors, rows) + following

    def _follow(self, tokens: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """How far the student is from its teacher on these texts, and its vectors."""
        with torch.no_grad():
            _, shown, target = self._shown(tokens)
        inputs, own, vectors = self._own(tokens)
        pairs = [(own[place], shown[layer + 1]) for place, layer in enumerate(self._config.layers, 1)]
        states = torch.stack([states_loss(*pair, inputs.mask) for pair in pairs]).mean()
        direction = direction_loss(vectors, target)
        return self._config.states_weight * states + self._config.direction_weight * direction, vectors


class Look:
    """Accuracy of each set by the nearest prototype, and how often the reply given is first among those offered."""

    def __init__(self, network: IntentNetwork, feed: Feed, material: Material, rows: int, seed: int) -> None:
        chance = random.Random(seed)
        self._network, self._vectors, self._tokenizer = network, Vectors(network, feed, False), feed.tokenizer
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

    def _first(self, one: Exchange) -> bool:
        (dialogue,) = self._of([self._tokenizer.encode_dialogue(one.turns[-1].text, one.turns[:-1])[0]])
        replies = self._of([self._tokenizer.encode(text) for text in one.options])
        said, offered = self._network.dialogue(dialogue), self._network.reply(replies)
        best = int(nn.functional.cosine_similarity(said[None], offered).argmax())
        return one.options[best] == one.template

    def _of(self, tokens: Sequence[Tokens]) -> Tensor:
        return torch.cat([self._vectors(tokens[start : start + 50])[2] for start in range(0, len(tokens), 50)])


def train_intents(config: IntentConfig, base: str, data: Path, out: Path) -> Path:
    """The teacher; returns `out` with `model.safetensors`, `tokenizer.json` and `training.json`."""
    _begin(config, out)
    adapt_tokenizer(base_file(base, TOKENIZER), out / TOKENIZER)
    tokenizer, material = Tokenizer(out / TOKENIZER, config.max_tokens), gather(config, data)
    batches = Planner(config, tokenizer, material).batches()
    encoder = encoder_of(base)
    network = IntentNetwork(
        encoder, encoder.config.hidden_size, {name: len(own) for name, own in material.labels.items()}
    )
    feed = Feed(tokenizer, device())
    vectors = Vectors(network, feed, config.compiled)
    look = Look(network, feed, material, config.validation_rows, config.seed)
    Trainer(config, network, lambda rows: labels_loss(network, vectors, rows), look, out, len(batches)).run(batches)
    _save(out, base, None, material.labels, config)
    return out


def distill_intents(config: IntentConfig, student: IntentDistillation, teacher: Path, data: Path, out: Path) -> Path:
    """A student of the training folder `teacher`; returns `out`, a training folder like it."""
    _begin(config, out)
    copyfile(teacher / TOKENIZER, out / TOKENIZER)
    taught = load_intent_run(teacher)
    tokenizer, material = Tokenizer(out / TOKENIZER, config.max_tokens), gather(config, data)
    if taught.labels != material.labels:
        raise ConfigError("the teacher knows other intents than the configuration's sets have")
    batches = Planner(config, tokenizer, material).batches()
    network = load_intent_weights(teacher, taught)
    fitted = [collate([row.tokens for row in rows], tokenizer.pad) for rows in batches[:FITTED_BATCHES]]
    small = student_of(
        network,
        student.layers,
        [(torch.from_numpy(b.ids), torch.from_numpy(b.mask), torch.from_numpy(b.types)) for b in fitted],
    )
    feed = Feed(tokenizer, device())
    network.to(feed.device)
    own, shown = Vectors(small, feed, config.compiled), Vectors(network, feed, config.compiled)
    look = Look(small, feed, material, config.validation_rows, config.seed)
    objective = Taught(small, network, student, own, shown)
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
    encoder = encoder_of(run.base)
    network = IntentNetwork(encoder, encoder.config.hidden_size, {name: len(own) for name, own in run.labels.items()})
    if run.layers is not None:
        keep_layers(network, run.layers)
    weights = load_file(folder / WEIGHTS)
    if any(name.endswith(LOG_STEP) for name in weights):
        quantize_encoder(network)
    network.load_state_dict(weights)
    return network.eval()


def _begin(config: IntentConfig, out: Path) -> None:
    torch.manual_seed(config.seed)
    random.seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)


def _save(
    out: Path, base: str, layers: Sequence[int] | None, labels: dict[str, tuple[str, ...]], config: IntentConfig
) -> None:
    content = {"base": base, "layers": layers, "labels": labels, "config": asdict(config)}
    (out / RUN).write_text(json.dumps(content, indent=1), encoding="utf-8")
