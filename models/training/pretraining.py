"""Masked-language pretraining of a base encoder on plain texts, and what it gives in each domain.

First the head alone learns to read the encoder as it is. That is the measure before. Then the whole encoder learns,
and the same hidden tokens are the measure after. So the difference is the encoder's alone.
"""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from math import ceil, exp
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from models.augmentation.epochs import sample_epoch
from models.bundle import TOKENIZER
from models.data.classification import Dataset, Example, read_texts
from models.data.leaks import deduplication_key, remove_leaks
from models.data.training_files import validation_texts
from models.networks.base_encoder import write_base_encoder
from models.networks.encoder import base_file, encoder_layers, keep_layers, load_base_encoder
from models.networks.masked_language import MaskedLanguageNetwork, MaskingRule, hide_tokens
from models.text.encoding import Encoding
from models.text.tokenizer import Tokenizer, adapt_tokenizer
from models.training.tracking import Tracker
from models.training.trainer import (
    WEIGHTS,
    ConfigError,
    DeviceCollator,
    Trainer,
    TrainingConfig,
    batch_by_length,
    choose_device,
)

WORK, HEAD, REPORT = "pretraining", "head", "pretraining.json"
"""In the base encoder's folder: the folder of the training, that of its first stage, and the measures."""

MAX_HELD_OUT = 10
"""Divisor of a file's texts that gives the most that are held out."""

MEASURED_ROWS = 32
"""Texts of a batch that is measured."""


@dataclass(frozen=True, slots=True)
class TextSource:
    """A file `NAME.txt.gz` with a text per line. `share` is as in `Dataset`. `domain` groups files that are alike."""

    name: str
    language: str
    licence: str
    domain: str
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainingConfig(TrainingConfig):
    """The settings of a pretraining.

    The head learns alone for `head_steps`. `masked`, `hidden` and `swapped` are as in `MaskingRule`, `reading` as in
    `Tokenizer`. `validation_rows` texts of each file are held out. `layers` are those that are kept, or none for all.
    """

    reading: int
    head_steps: int
    masked: float
    hidden: float
    swapped: float
    texts: tuple[TextSource, ...]
    layers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A tokenised text without a label."""

    tokens: Encoding


@dataclass(frozen=True, slots=True)
class Figures:
    """The quality of predicted tokens: the mean loss, its exponential and the share of right tokens."""

    loss: float
    perplexity: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class DomainReport:
    """The held-out texts of a domain in a language, and the figures of their hidden tokens before and after."""

    domain: str
    language: str
    texts: int
    tokens: int
    before: Figures
    after: Figures


Domains = dict[tuple[str, str], list[Encoding]]
"""Held-out texts by domain and language."""


def read_pretraining_config(path: Path) -> PretrainingConfig:
    """Read a configuration file. Raises ConfigError naming a missing or unknown field."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        texts, layers = tuple(TextSource(**row) for row in content["texts"]), tuple(content.get("layers", ()))
        return PretrainingConfig(**{**content, "texts": texts, "layers": layers})
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the configuration cannot be used: {error}") from error


def pretrain(
    config: PretrainingConfig,
    base: str,
    texts: Path,
    data: Path | None,
    out: Path,
    tracker: Tracker | None = None,
) -> list[DomainReport]:
    """Write the pretrained base encoder to `out`, and return its measures.

    Texts like a validation row of the data sets in `data` are left out. Raises ValueError if the tokenizer of the base
    has no token that hides others, and ConfigError if no text is left.
    """
    torch.manual_seed(config.seed)
    work, head = out / WORK, out / WORK / HEAD
    head.mkdir(parents=True, exist_ok=True)
    adapt_tokenizer(base_file(base, TOKENIZER), work / TOKENIZER)
    tokenizer = Tokenizer(work / TOKENIZER, config.max_tokens, config.reading)
    training, held_out = split_texts(config, texts, data)
    batches = plan_batches(config, tokenizer, training)
    domains = group_by_domain(config, tokenizer, held_out)
    encoder = load_base_encoder(base, needs_types=False)
    vocabulary = encoder.config.vocab_size
    network = MaskedLanguageNetwork(encoder, count_tokens(batches, vocabulary))
    if config.layers:
        keep_layers(network, config.layers)
    masking = (config.masked, config.hidden, config.swapped)
    rule = MaskingRule(tokenizer.mask_id, tokenizer.special_ids, vocabulary, *masking)
    collator = DeviceCollator(tokenizer, choose_device())
    network.to(collator.device)
    objective = MaskedObjective(network, collator, rule)
    fit_head(config, network, objective, head, batches)
    before = measure_domains(objective, domains)
    trainer = Trainer(config, network, objective, DomainValidation(objective, domains), work, len(batches), tracker)
    trainer.run(batches)
    after = measure_domains(objective, domains)
    reports = [
        DomainReport(*domain, len(domains[domain]), before[domain][1], before[domain][0], after[domain][0])
        for domain in domains
    ]
    write_base_encoder(out, network.encoder, base_file(base, TOKENIZER))
    content = {"base": base, "config": asdict(config), "domains": [asdict(report) for report in reports]}
    (out / REPORT).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return reports


def split_texts(
    config: PretrainingConfig, folder: Path, data: Path | None
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the training texts and the held-out texts of each source. No text is in both, nor a copy of one."""
    datasets = [Dataset(source.name, source.language, (), source.licence) for source in config.texts]
    validation = [] if data is None else list(validation_texts(data))
    rows: dict[str, list[Example]] = {dataset.name: [] for dataset in datasets}
    for example in remove_leaks([row for dataset in datasets for row in read_texts(folder, dataset)], validation):
        rows[example.dataset].append(example)
    held_out: dict[str, list[str]] = {}
    for name, examples in rows.items():
        texts = list(dict.fromkeys(example.text for example in examples))
        random.Random(config.seed).shuffle(texts)
        held_out[name] = texts[: min(config.validation_rows, len(texts) // MAX_HELD_OUT)]
    keys = {deduplication_key(text) for texts in held_out.values() for text in texts}
    training = {
        name: [example.text for example in examples if deduplication_key(example.text) not in keys]
        for name, examples in rows.items()
    }
    return training, held_out


def plan_batches(
    config: PretrainingConfig, tokenizer: Tokenizer, training: Mapping[str, Sequence[str]]
) -> list[list[TokenRow]]:
    """Return every batch of the whole run, in order. Raises ConfigError if there is none."""
    batches: list[list[TokenRow]] = []
    for epoch in range(ceil(config.epochs)):
        rng = random.Random(config.seed + epoch)
        texts = [
            text
            for source in config.texts
            for text in sample_epoch(training[source.name], source.share, config.seed, epoch)
        ]
        rng.shuffle(texts)
        epoch_batches = batch_by_length([TokenRow(tokenizer.encode(text)) for text in texts], config, rng)
        batches += epoch_batches[: ceil(min(1.0, config.epochs - epoch) * len(epoch_batches))]
    if not batches:
        raise ConfigError("the texts are too few to train on")
    return batches


def group_by_domain(config: PretrainingConfig, tokenizer: Tokenizer, held_out: Mapping[str, Sequence[str]]) -> Domains:
    """Return the encodings of the held-out texts, short ones first, by domain and language."""
    domains: Domains = {}
    for source in config.texts:
        encodings = [tokenizer.encode(text) for text in held_out[source.name]]
        domains.setdefault((source.domain, source.language), []).extend(encodings)
    return {domain: sorted(rows, key=lambda tokens: tokens.length) for domain, rows in domains.items() if rows}


def count_tokens(batches: Sequence[Sequence[TokenRow]], vocabulary: int) -> Tensor:
    """Return how often each token (vocabulary,) occurs in the batches."""
    ids = np.concatenate([row.tokens.ids for rows in batches for row in rows])
    return torch.from_numpy(np.bincount(ids, minlength=vocabulary))


class MaskedObjective:
    """The cross-entropy of hidden tokens."""

    def __init__(self, network: MaskedLanguageNetwork, collator: DeviceCollator, rule: MaskingRule) -> None:
        self._network, self._collator, self._rule = network, collator, rule

    def __call__(self, rows: Sequence[TokenRow]) -> Tensor:
        logits, targets = self.predict([row.tokens for row in rows])
        return cross_entropy(logits, targets)

    def predict(self, tokens: Sequence[Encoding], generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Hide tokens, and return the logits (hidden, vocabulary) and the ids (hidden,) of those that were hidden."""
        inputs = self._collator(tokens)
        ids, positions = hide_tokens(inputs.ids, inputs.mask, self._rule, generator)
        return self._network(ids, inputs.mask, positions).float(), inputs.ids[positions]

    @torch.inference_mode()
    def measure(self, encodings: Sequence[Encoding]) -> tuple[Figures, int]:
        """Return the figures of hidden tokens in texts, and their number. The same tokens are hidden each time."""
        generator = torch.Generator().manual_seed(0)
        loss = torch.zeros((), dtype=torch.float64)
        right = count = 0
        for start in range(0, len(encodings), MEASURED_ROWS):
            logits, targets = self.predict(encodings[start : start + MEASURED_ROWS], generator)
            loss += cross_entropy(logits, targets, reduction="sum").cpu()
            right += int((logits.argmax(dim=-1) == targets).sum())
            count += len(targets)
        mean = float(loss) / count
        return Figures(mean, exp(mean), right / count), count

    def eval(self) -> None:
        self._network.eval()


class DomainValidation:
    """The accuracy and the perplexity of each domain's hidden tokens."""

    def __init__(self, objective: MaskedObjective, domains: Domains) -> None:
        self._objective, self._domains = objective, domains

    def __call__(self) -> Iterator[tuple[str, float]]:
        for (domain, language), encodings in self._domains.items():
            figures, _ = self._objective.measure(encodings)
            yield f"masked_accuracy/{domain}_{language}", figures.accuracy
            yield f"masked_perplexity/{domain}_{language}", figures.perplexity


def measure_domains(objective: MaskedObjective, domains: Domains) -> dict[tuple[str, str], tuple[Figures, int]]:
    objective.eval()
    return {domain: objective.measure(encodings) for domain, encodings in domains.items()}


def fit_head(
    config: PretrainingConfig,
    network: MaskedLanguageNetwork,
    objective: MaskedObjective,
    out: Path,
    batches: Sequence[list[TokenRow]],
) -> None:
    """Train the head on the frozen encoder, or load it from a stage that has finished."""
    if (out / WEIGHTS).exists():
        network.load_state_dict(load_file(out / WEIGHTS))
    elif config.head_steps:
        frozen = replace(config, frozen_layers=len(encoder_layers(network)), freeze_embeddings=True)
        steps = list(islice(cycle(batches), config.head_steps))
        Trainer(frozen, network, objective, lambda: iter(()), out, len(steps)).run(steps)
    network.requires_grad_(True)
