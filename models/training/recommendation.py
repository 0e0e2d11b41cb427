"""Training a recommender: first the encoder of item texts, then the attention over histories of its vectors.

Knows nothing of bundles: `models.export.recommendation` makes one of the folder.
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
from models.text.encoding import Encoding
from models.text.tokenizer import Tokenizer, adapt_tokenizer
from models.training.cold_start import fit_cold_start
from models.training.history_network import HistoryConfig, train_history_network
from models.training.item_encoder import (
    AnchorText,
    CoOccurrenceObjective,
    ItemEncoderConfig,
    batches_of,
    co_occurrence,
    embed,
)
from models.training.item_neighbours import NeighbourConfig
from models.training.score_weights import choose_score_weights
from models.training.trainer import RUN, WEIGHTS, ConfigError, DeviceCollator, Trainer, choose_device

HISTORY, VECTORS = "history.safetensors", "vectors.safetensors"
MAX_KEPT_TOKENS = 24
"""Characters of a kept text, near the length of an item's."""

COLD_START_KEYS = ("always", "said", "taken")
"""Keys of `training.json` for the bias, neighbours and taken of `ColdStartWeights`."""

NEAREST = 20


@dataclass(frozen=True, slots=True)
class AnchorTexts:
    """So many lines of a file NAME.txt.gz."""

    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class RecommendConfig:
    """`models/configs/recommend.toml` explains each field."""

    removed: float
    removed_seed: int
    items: ItemEncoderConfig
    histories: HistoryConfig
    kept: tuple[AnchorTexts, ...]


@dataclass(frozen=True, slots=True)
class RecommendRun:
    """A finished run, as its folder tells of it."""

    base: str
    config: RecommendConfig


def read_recommend_config(path: Path) -> RecommendConfig:
    """Raises ConfigError naming the field when one is missing or unknown."""
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    try:
        return _config_of(content)
    except (KeyError, TypeError) as error:
        raise ConfigError(f"the configuration cannot be used: {error}") from error


def _config_of(content: dict[str, object]) -> RecommendConfig:
    own = dict(content)
    items, histories, kept = own.pop("items"), own.pop("histories"), own.pop("kept")
    assert isinstance(items, dict)
    assert isinstance(histories, dict)
    assert isinstance(kept, list)
    texts = tuple(AnchorTexts(**one) for one in kept)
    neighbours, scales = NeighbourConfig(**histories["neighbours"]), ScoreWeights(**histories.get("scales", {}))
    newcomers = histories.get("newcomers")
    found = {
        "neighbours": neighbours,
        "scales": scales,
        "newcomers": newcomers and _cold_start_weights(newcomers),
    }
    return RecommendConfig(
        items=ItemEncoderConfig(**items),
        histories=HistoryConfig(**{**histories, **found}),
        kept=texts,
        **own,  # type: ignore[arg-type]
    )


def _cold_start_weights(content: Mapping[str, float]) -> ColdStartWeights:
    bias, neighbours, taken = (content[key] for key in COLD_START_KEYS)
    return ColdStartWeights(bias=bias, neighbours=neighbours, taken=taken)


def _content_of(config: RecommendConfig) -> dict[str, Any]:
    """Return the configuration as `training.json` holds it."""
    content = asdict(config)
    if (weights := config.histories.newcomers) is not None:
        values = (weights.bias, weights.neighbours, weights.taken)
        content["histories"]["newcomers"] = dict(zip(COLD_START_KEYS, values, strict=True))
    return content


def train_recommend(
    config: RecommendConfig, base: str, data: Path, texts: Path, out: Path, say: Callable[[str], None] = print
) -> Path:
    """Returns `out` with the encoder's `model.safetensors`, `history.safetensors`, `tokenizer.json`, `training.json`.

    Each user's last basket is left out of everything. Started again, it goes on with the encoder's newest checkpoint.
    """
    out.mkdir(parents=True, exist_ok=True)
    adapt_tokenizer(base_file(base, TOKENIZER), out / TOKENIZER)
    interactions = load_held_out(data).training
    if not (out / VECTORS).exists():
        _train_encoder(config, base, interactions, texts, out)
    vectors = load_file(out / VECTORS)["vectors"].numpy()
    histories = choose_score_weights(interactions, centred(vectors), config.histories, say)
    removed = draw_removed_items(len(vectors), config.removed, config.removed_seed)
    histories = fit_cold_start(interactions, centred(vectors), histories, removed, say)
    network = train_history_network(interactions, centred(vectors), histories, say)
    save_file({name: value.clone() for name, value in network.state_dict().items()}, out / HISTORY)
    content = {"task": "recommend", "base": base, "config": _content_of(replace(config, histories=histories))}
    (out / RUN).write_text(json.dumps(content, indent=1), encoding="utf-8")
    return out


def centred(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = vectors - vectors.mean(axis=0)
    return found


def load_recommend_run(folder: Path) -> RecommendRun:
    content = json.loads((folder / RUN).read_text(encoding="utf-8"))
    return RecommendRun(content["base"], _config_of(content["config"]))


def load_encoder(folder: Path, run: RecommendRun) -> Embedder:
    """The trained encoder of a training folder, ready to evaluate."""
    return load_trained(Embedder(load_base_encoder(run.base)), load_file(folder / WEIGHTS), None)


def _train_encoder(config: RecommendConfig, base: str, interactions: Interactions, texts: Path, out: Path) -> None:
    schedule = config.items
    torch.manual_seed(schedule.seed)
    tokenizer = Tokenizer(out / TOKENIZER, schedule.max_tokens)
    tokens = [tokenizer.encode(text) for text in interactions.texts]
    removed = draw_removed_items(len(tokens), config.removed, config.removed_seed)
    beside = co_occurrence(baskets_of(interactions, removed), len(tokens))
    taught = np.flatnonzero(np.diff(beside.indptr) > 0).tolist()
    network, feed = Embedder(load_base_encoder(base)).eval(), DeviceCollator(tokenizer, choose_device())
    network.to(feed.device)
    kept = _kept(config, network, feed, texts)
    batches = list(batches_of(taught, tokens, kept, schedule))
    look = ItemValidation(
        network, feed, tokens, co_occurrence(baskets_of(interactions, removed[:0]), len(tokens)), removed, taught
    )
    objective = CoOccurrenceObjective(network, feed, tokens, beside, schedule)
    Trainer(schedule, network, objective, look, out, len(batches)).run(batches)
    save_file({"vectors": embed(network.eval(), feed, tokens).cpu()}, out / VECTORS)


def baskets_of(interactions: Interactions, removed: Items) -> list[Items]:
    """Every basket, and every two that follow each other taken together, without the removed items."""
    found: list[Items] = []
    for trail in interactions.users.values():
        own = [basket[~np.isin(basket, removed)] for basket in trail.each_basket()]
        found += own + [np.concatenate(pair) for pair in pairwise(own)]
    return found


def _kept(config: RecommendConfig, network: Embedder, feed: DeviceCollator, folder: Path) -> list[AnchorText]:
    chance = random.Random(config.items.seed)
    chosen: list[str] = []
    for source in config.kept:
        with gzip.open(folder / f"{source.name}.txt.gz", "rt", encoding="utf-8") as file:
            lines = [line.strip()[:MAX_KEPT_TOKENS] for line in file]
        lines = [line for line in lines if line]
        chosen += chance.sample(lines, min(source.rows, len(lines)))
    tokens = [feed.tokenizer.encode(text) for text in chosen]
    return [AnchorText(*pair) for pair in zip(tokens, embed(network, feed, tokens), strict=True)]


class ItemValidation:
    """How much of an item's company is among the NEAREST by its vector: of some taught items, and of the removed."""

    def __init__(
        self,
        network: Embedder,
        feed: DeviceCollator,
        tokens: Sequence[Encoding],
        beside: csr_matrix,
        removed: Items,
        taught: Sequence[int],
    ) -> None:
        self._network, self._feed, self._tokens, self._beside = network, feed, tokens, beside
        some = np.random.default_rng(0).permutation(taught)[:300]
        self._groups = {"taught": some, "removed": removed}

    def __call__(self) -> Iterator[tuple[str, float]]:
        vectors = normalize(embed(self._network, self._feed, self._tokens), dim=-1).cpu().numpy()
        for name, items in self._groups.items():
            cosines = vectors[items] @ vectors.T
            cosines[np.arange(len(items)), items] = -np.inf
            near = np.argsort(-cosines, axis=1)[:, :NEAREST]
            company = self._beside[items].toarray()
            yield f"company/{name}", float(np.take_along_axis(company, near, axis=1).sum(axis=1).mean())
