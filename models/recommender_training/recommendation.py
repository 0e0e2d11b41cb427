"""Training of a recommender: first the encoder of item texts, then the history network on its vectors.

This module knows no bundles: `models.export.recommendation` makes a bundle of the folder.
"""

from __future__ import annotations

import gzip
import json
import random
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_matrix
from torch.nn.functional import normalize

from models.bundle import TOKENIZER
from models.data.interactions import Interactions, Items, draw_removed_items, load_held_out
from models.networks.encoder import Embedder, base_file, load_base_encoder
from models.networks.quantization import load_trained
from models.networks.recommender import ScoreWeights
from models.ranking.cold_start import ColdStartWeights
from models.recommender_training.cold_start import fit_cold_start
from models.recommender_training.history_network import HistoryConfig, train_history_network
from models.recommender_training.item_encoder import (
    AnchorText,
    CoOccurrenceObjective,
    ItemEncoderConfig,
    compute_co_occurrence,
    embed_texts,
    plan_item_batches,
)
from models.recommender_training.item_neighbours import NeighbourConfig
from models.recommender_training.score_weights import choose_score_weights
from models.text.encoding import Encoding
from models.text.tokenizer import Tokenizer, adapt_tokenizer
from models.training.tracking import Tracker
from models.training.trainer import RUN, WEIGHTS, ConfigError, DeviceCollator, Trainer, choose_device

HISTORY, VECTORS = "history.safetensors", "vectors.safetensors"
MAX_ANCHOR_CHARACTERS = 24
"""Characters of an anchor text that are read, about the length of an item's text."""

COLD_START_KEYS = ("always", "said", "taken")
"""The keys of `training.json` for the bias, neighbours and taken of `ColdStartWeights`."""

NEAREST = 20
"""Nearest items by vector whose co-occurrences are measured in validation."""


@dataclass(frozen=True, slots=True)
class AnchorTexts:
    """The number of lines to draw from a file NAME.txt.gz."""

    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class RecommendConfig:
    """The settings of a run. `models/configs/recommend.toml` explains each field."""

    removed: float
    removed_seed: int
    items: ItemEncoderConfig
    histories: HistoryConfig
    kept: tuple[AnchorTexts, ...]


@dataclass(frozen=True, slots=True)
class RecommendRun:
    """A finished run, read from its folder."""

    base: str
    config: RecommendConfig


def read_recommend_config(path: Path) -> RecommendConfig:
    """Read a configuration file. Raises ConfigError naming a missing or unknown field."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        return _parse_config(content)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the configuration cannot be used: {error}") from error


def _parse_config(content: dict[str, object]) -> RecommendConfig:
    fields = dict(content)
    items, histories, kept = fields.pop("items"), fields.pop("histories"), fields.pop("kept")
    assert isinstance(items, dict)
    assert isinstance(histories, dict)
    assert isinstance(kept, list)
    anchors = tuple(AnchorTexts(**table) for table in kept)
    neighbours, scales = NeighbourConfig(**histories["neighbours"]), ScoreWeights(**histories.get("scales", {}))
    newcomers = histories.get("newcomers")
    parsed = {
        "neighbours": neighbours,
        "scales": scales,
        "newcomers": newcomers and _cold_start_weights(newcomers),
    }
    return RecommendConfig(
        items=ItemEncoderConfig(**items),
        histories=HistoryConfig(**{**histories, **parsed}),
        kept=anchors,
        **fields,  # type: ignore[arg-type]
    )


def _cold_start_weights(content: Mapping[str, float]) -> ColdStartWeights:
    bias, neighbours, taken = (content[key] for key in COLD_START_KEYS)
    return ColdStartWeights(bias=bias, neighbours=neighbours, taken=taken)


def _config_content(config: RecommendConfig) -> dict[str, Any]:
    """Return the configuration as `training.json` holds it."""
    content = asdict(config)
    if (weights := config.histories.newcomers) is not None:
        values = (weights.bias, weights.neighbours, weights.taken)
        content["histories"]["newcomers"] = dict(zip(COLD_START_KEYS, values, strict=True))
    return content


def train_recommend(
    config: RecommendConfig,
    base: str,
    data: Path,
    texts: Path,
    out: Path,
    log: Callable[[str], None] = print,
    tracker: Tracker | None = None,
) -> Path:
    """Train on all but each user's last basket, and return `out`. The tracker records the encoder's steps.

    The folder has the encoder's `model.safetensors`, `history.safetensors`, `tokenizer.json` and `training.json`. A
    stopped run resumes from the encoder's newest checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    adapt_tokenizer(base_file(base, TOKENIZER), out / TOKENIZER)
    interactions = load_held_out(data).training
    if not (out / VECTORS).exists():
        _train_encoder(config, base, interactions, texts, out, tracker)
    vectors = load_file(out / VECTORS)["vectors"].numpy()
    histories = choose_score_weights(interactions, center_vectors(vectors), config.histories, log)
    removed = draw_removed_items(len(vectors), config.removed, config.removed_seed)
    histories = fit_cold_start(interactions, center_vectors(vectors), histories, removed, log)
    network = train_history_network(interactions, center_vectors(vectors), histories, log)
    save_file({name: value.clone() for name, value in network.state_dict().items()}, out / HISTORY)
    content = {"task": "recommend", "base": base, "config": _config_content(replace(config, histories=histories))}
    (out / RUN).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return out


def center_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the vectors (items, width) less their mean."""
    centered: NDArray[np.float32] = vectors - vectors.mean(axis=0)
    return centered


def load_recommend_run(folder: Path) -> RecommendRun:
    content = json.loads((folder / RUN).read_text(encoding="utf-8"))
    return RecommendRun(content["base"], _parse_config(content["config"]))


def load_encoder(folder: Path, run: RecommendRun) -> Embedder:
    """Load the trained encoder of a training folder, in evaluation mode."""
    return load_trained(Embedder(load_base_encoder(run.base)), load_file(folder / WEIGHTS), None)


def _train_encoder(
    config: RecommendConfig, base: str, interactions: Interactions, texts: Path, out: Path, tracker: Tracker | None
) -> None:
    settings = config.items
    torch.manual_seed(settings.seed)
    tokenizer = Tokenizer(out / TOKENIZER, settings.max_tokens)
    tokens = [tokenizer.encode(text) for text in interactions.texts]
    removed = draw_removed_items(len(tokens), config.removed, config.removed_seed)
    co_occurrence = compute_co_occurrence(collect_baskets(interactions, removed), len(tokens))
    trained = np.flatnonzero(np.diff(co_occurrence.indptr) > 0).tolist()
    network, collator = Embedder(load_base_encoder(base)).eval(), DeviceCollator(tokenizer, choose_device())
    network.to(collator.device)
    anchors = _draw_anchors(config, network, collator, texts)
    batches = list(plan_item_batches(trained, tokens, anchors, settings))
    with_removed = compute_co_occurrence(collect_baskets(interactions, removed[:0]), len(tokens))
    validate = ItemValidation(network, collator, tokens, with_removed, removed, trained)
    objective = CoOccurrenceObjective(network, collator, tokens, co_occurrence, settings)
    Trainer(settings, network, objective, validate, out, len(batches), tracker).run(batches)
    save_file({"vectors": embed_texts(network.eval(), collator, tokens).cpu()}, out / VECTORS)


def collect_baskets(interactions: Interactions, removed: Items) -> list[Items]:
    """Return every basket, and the union of every two successive baskets, without the removed items."""
    collected: list[Items] = []
    for sequence in interactions.users.values():
        baskets = [basket[~np.isin(basket, removed)] for basket in sequence.each_basket()]
        collected += baskets + [np.concatenate(pair) for pair in pairwise(baskets)]
    return collected


def _draw_anchors(
    config: RecommendConfig, network: Embedder, collator: DeviceCollator, folder: Path
) -> list[AnchorText]:
    rng = random.Random(config.items.seed)
    texts: list[str] = []
    for source in config.kept:
        with gzip.open(folder / f"{source.name}.txt.gz", "rt", encoding="utf-8") as file:
            lines = [line.strip()[:MAX_ANCHOR_CHARACTERS] for line in file]
        lines = [line for line in lines if line]
        texts += rng.sample(lines, min(source.rows, len(lines)))
    tokens = [collator.tokenizer.encode(text) for text in texts]
    return [AnchorText(*pair) for pair in zip(tokens, embed_texts(network, collator, tokens), strict=True)]


class ItemValidation:
    """The share of an item's co-occurrences among the NEAREST items by vector.

    It is measured for a sample of the trained items and for the removed items.
    """

    def __init__(
        self,
        network: Embedder,
        collator: DeviceCollator,
        tokens: Sequence[Encoding],
        co_occurrence: csr_matrix,
        removed: Items,
        trained: Sequence[int],
    ) -> None:
        self._network, self._collator, self._tokens, self._co_occurrence = network, collator, tokens, co_occurrence
        sample = np.random.default_rng(0).permutation(trained)[:300]
        self._groups = {"taught": sample, "removed": removed}

    def __call__(self) -> Iterator[tuple[str, float]]:
        vectors = normalize(embed_texts(self._network, self._collator, self._tokens), dim=-1).cpu().numpy()
        for name, items in self._groups.items():
            cosines = vectors[items] @ vectors.T
            cosines[np.arange(len(items)), items] = -np.inf
            nearest = np.argsort(-cosines, axis=1)[:, :NEAREST]
            co_occurrence = self._co_occurrence[items].toarray()
            yield f"company/{name}", float(np.take_along_axis(co_occurrence, nearest, axis=1).sum(axis=1).mean())
