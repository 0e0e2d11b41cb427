"""Teaching an encoder which items go together: texts of items that the same people take get near vectors.

Each item's text is to say by its cosine to every other which items stand beside it in baskets, popularity apart, so
that an item nobody has taken yet is placed among its like by its text. Texts of other kinds and languages keep the
vectors that the base gives them. Knows torch, no bundles.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn.functional import normalize

from models.networks.encoder import Embedder, encoder_layers
from models.text.encoding import Encoding
from models.training.losses import direction_loss
from models.training.trainer import DeviceCollator, TrainingConfig

EMBEDDED = 128
"""Texts in a batch without gradients."""

FEW = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemEncoderConfig(TrainingConfig):
    """`models/configs/recommend.toml` explains each field."""

    frozen_layers: int
    temperature: float
    keep_weight: float
    kept_rows: int


@dataclass(frozen=True, slots=True)
class AnchorText:
    """A text whose vector is to stay where the base has it; `vector` (width,)."""

    tokens: Encoding
    vector: Tensor


@dataclass(frozen=True, slots=True)
class ItemBatch:
    items: list[int]
    kept: list[AnchorText]


def co_occurrence(baskets: Sequence[NDArray[np.int64]], items: int) -> csr_matrix:
    """How often each item (row) stands beside each other one, (items, items), each row summing to 1 or 0.

    A basket of n items counts 1 / (n - 1) for each pair, so that a large one does not outweigh the rest.
    """
    several = [np.unique(basket) for basket in baskets]
    several = [basket for basket in several if len(basket) > 1]
    rows = np.repeat(np.arange(len(several)), [len(basket) for basket in several])
    weights = np.repeat([1 / np.sqrt(len(basket) - 1) for basket in several], [len(basket) for basket in several])
    taken = csr_matrix((weights, (rows, np.concatenate(several))), shape=(len(several), items))
    beside = (taken.T @ taken).tolil()
    beside.setdiag(0)
    beside = beside.tocsr()
    sums = np.asarray(beside.sum(axis=1)).ravel()
    scale = csr_matrix((1 / np.maximum(sums, FEW), (np.arange(items), np.arange(items))), shape=(items, items))
    return csr_matrix(scale @ beside)


def embed(network: Embedder, feed: DeviceCollator, tokens: Sequence[Encoding]) -> Tensor:
    """The texts' vectors, (texts, width), without gradients."""
    order = sorted(range(len(tokens)), key=lambda place: tokens[place].length)
    parts = []
    with torch.no_grad():
        for start in range(0, len(order), EMBEDDED):
            inputs = feed([tokens[place] for place in order[start : start + EMBEDDED]])
            parts.append(network(inputs.ids, inputs.mask, inputs.types).float())
    rows = torch.cat(parts)
    return torch.empty_like(rows).index_copy_(0, torch.tensor(order, device=rows.device), rows)


class CoOccurrenceObjective:
    """Cross-entropy between an item's companions and the softmax of its cosines to all items.

    All items' vectors stand in a bank that each batch renews its own rows of, as in momentum contrast (He et al. 2020)
    without the second network. The logarithm of an item's popularity is added to its cosines while training, so that
    the vectors hold what popularity does not explain (logQ correction, Bengio and Senecal 2008).
    """

    def __init__(
        self,
        network: Embedder,
        feed: DeviceCollator,
        tokens: Sequence[Encoding],
        beside: csr_matrix,
        config: ItemEncoderConfig,
    ) -> None:
        for part in list(encoder_layers(network))[: config.frozen_layers]:
            part.requires_grad_(False)
        network.encoder.embeddings.requires_grad_(False)
        self._network, self._feed, self._tokens, self._beside, self._config = network, feed, tokens, beside, config
        network.eval()
        self._bank = normalize(embed(network, feed, tokens), dim=-1)
        popular = np.asarray(beside.sum(axis=0)).ravel()
        self._prior = torch.from_numpy(np.log(popular / popular.sum() + 1e-6)).float().to(feed.device)

    def __call__(self, rows: list[ItemBatch]) -> Tensor:
        (batch,) = rows
        own = self._vectors([self._tokens[item] for item in batch.items])
        places = torch.tensor(batch.items, device=own.device)
        unit = normalize(own, dim=-1)
        self._bank[places] = unit.detach()
        bank = self._bank.index_copy(0, places, unit)
        logits = unit @ bank.T / self._config.temperature + self._prior
        logits = logits.scatter(1, places[:, None], -1e4)
        wanted = torch.from_numpy(self._beside[batch.items].toarray()).float().to(own.device)
        loss = -(wanted * logits.log_softmax(dim=-1)).sum(dim=-1).sum() / wanted.sum().clamp_min(1.0)
        if batch.kept:
            still = torch.stack([one.vector for one in batch.kept]).to(own.device)
            kept = self._vectors([one.tokens for one in batch.kept])
            loss = loss + self._config.keep_weight * direction_loss(kept, still)
        return loss

    def _vectors(self, tokens: Sequence[Encoding]) -> Tensor:
        inputs = self._feed(tokens)
        found: Tensor = self._network(inputs.ids, inputs.mask, inputs.types).float()
        return found


def batches_of(
    items: Sequence[int], tokens: Sequence[Encoding], kept: Sequence[AnchorText], config: ItemEncoderConfig
) -> Iterator[list[ItemBatch]]:
    """Every batch of the run, from the seed alone: each item once an epoch, near lengths together."""
    chance = np.random.default_rng(config.seed)
    for _ in range(int(config.epochs)):
        noisy = sorted(items, key=lambda item: tokens[item].length + chance.random() * 2)
        groups = [noisy[start : start + config.batch_examples] for start in range(0, len(noisy), config.batch_examples)]
        for place in chance.permutation(len(groups)):
            texts = [kept[one] for one in chance.integers(0, len(kept), config.kept_rows)] if kept else []
            yield [ItemBatch(groups[place], texts)]
