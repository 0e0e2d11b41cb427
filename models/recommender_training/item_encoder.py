"""Training of an encoder on co-occurrence: texts of items that the same people take get similar vectors.

The cosines of an item's text to all other texts should predict which items co-occur with it in baskets, apart from
popularity. Then the text alone places a cold item among similar items. Texts of other kinds and languages keep the
vectors of the base. This module knows torch and no bundles.
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

EMBED_BATCH_SIZE = 128
"""Texts in a batch without gradients."""

MIN_SUM = 1e-9
"""Keeps an item without co-occurrences from a division by zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemEncoderConfig(TrainingConfig):
    """The settings of the encoder's training. `models/configs/recommend.toml` explains each field."""

    frozen_layers: int
    temperature: float
    keep_weight: float
    kept_rows: int


@dataclass(frozen=True, slots=True)
class AnchorText:
    """A text whose vector should stay as the base has it; `vector` (width,)."""

    tokens: Encoding
    vector: Tensor


@dataclass(frozen=True, slots=True)
class ItemBatch:
    """The items and anchor texts of a step."""

    items: list[int]
    anchors: list[AnchorText]


def compute_co_occurrence(baskets: Sequence[NDArray[np.int64]], items: int) -> csr_matrix:
    """Return how often each item (row) co-occurs with each other item, (items, items). Each row sums to 1 or 0.

    A basket of n items counts 1 / (n - 1) for each pair, so that a large basket does not outweigh the rest.
    """
    distinct = [np.unique(basket) for basket in baskets]
    distinct = [basket for basket in distinct if len(basket) > 1]
    rows = np.repeat(np.arange(len(distinct)), [len(basket) for basket in distinct])
    weights = np.repeat([1 / np.sqrt(len(basket) - 1) for basket in distinct], [len(basket) for basket in distinct])
    taken = csr_matrix((weights, (rows, np.concatenate(distinct))), shape=(len(distinct), items))
    counts = (taken.T @ taken).tolil()
    counts.setdiag(0)
    counts = counts.tocsr()
    sums = np.asarray(counts.sum(axis=1)).ravel()
    scale = csr_matrix((1 / np.maximum(sums, MIN_SUM), (np.arange(items), np.arange(items))), shape=(items, items))
    return csr_matrix(scale @ counts)


def embed_texts(network: Embedder, collator: DeviceCollator, tokens: Sequence[Encoding]) -> Tensor:
    """Return the texts' vectors, (texts, width), without gradients."""
    order = sorted(range(len(tokens)), key=lambda index: tokens[index].length)
    batches = []
    with torch.no_grad():
        for start in range(0, len(order), EMBED_BATCH_SIZE):
            inputs = collator([tokens[index] for index in order[start : start + EMBED_BATCH_SIZE]])
            batches.append(network(inputs.ids, inputs.mask, inputs.types).float())
    rows = torch.cat(batches)
    return torch.empty_like(rows).index_copy_(0, torch.tensor(order, device=rows.device), rows)


class CoOccurrenceObjective:
    """Cross-entropy between an item's co-occurrences and the softmax of its cosines to all items.

    A bank holds all items' vectors, and each batch renews its rows of the bank. This is momentum contrast (He et al.
    2020) without the second network. In training, the logarithm of an item's popularity is added to its cosines. So the
    vectors hold what popularity does not explain (logQ correction, Bengio and Senecal 2008).
    """

    def __init__(
        self,
        network: Embedder,
        collator: DeviceCollator,
        tokens: Sequence[Encoding],
        co_occurrence: csr_matrix,
        config: ItemEncoderConfig,
    ) -> None:
        for layer in list(encoder_layers(network))[: config.frozen_layers]:
            layer.requires_grad_(False)
        network.encoder.embeddings.requires_grad_(False)
        self._network, self._collator, self._tokens, self._config = network, collator, tokens, config
        self._co_occurrence = co_occurrence
        network.eval()
        self._bank = normalize(embed_texts(network, collator, tokens), dim=-1)
        popularity = np.asarray(co_occurrence.sum(axis=0)).ravel()
        self._prior = torch.from_numpy(np.log(popularity / popularity.sum() + 1e-6)).float().to(collator.device)

    def __call__(self, rows: list[ItemBatch]) -> Tensor:
        (batch,) = rows
        vectors = self._vectors([self._tokens[item] for item in batch.items])
        indices = torch.tensor(batch.items, device=vectors.device)
        unit = normalize(vectors, dim=-1)
        self._bank[indices] = unit.detach()
        bank = self._bank.index_copy(0, indices, unit)
        logits = unit @ bank.T / self._config.temperature + self._prior
        logits = logits.scatter(1, indices[:, None], -1e4)
        target = torch.from_numpy(self._co_occurrence[batch.items].toarray()).float().to(vectors.device)
        loss = -(target * logits.log_softmax(dim=-1)).sum(dim=-1).sum() / target.sum().clamp_min(1.0)
        if batch.anchors:
            base_vectors = torch.stack([anchor.vector for anchor in batch.anchors]).to(vectors.device)
            anchor_vectors = self._vectors([anchor.tokens for anchor in batch.anchors])
            loss = loss + self._config.keep_weight * direction_loss(anchor_vectors, base_vectors)
        return loss

    def _vectors(self, tokens: Sequence[Encoding]) -> Tensor:
        inputs = self._collator(tokens)
        vectors: Tensor = self._network(inputs.ids, inputs.mask, inputs.types).float()
        return vectors


def plan_item_batches(
    items: Sequence[int], tokens: Sequence[Encoding], anchors: Sequence[AnchorText], config: ItemEncoderConfig
) -> Iterator[list[ItemBatch]]:
    """Yield every batch of the run, from the seed alone. Each epoch has every item once, similar lengths together."""
    rng = np.random.default_rng(config.seed)
    for _ in range(int(config.epochs)):
        order = sorted(items, key=lambda item: tokens[item].length + rng.random() * 2)
        groups = [order[start : start + config.batch_examples] for start in range(0, len(order), config.batch_examples)]
        for group in rng.permutation(len(groups)):
            texts = [anchors[index] for index in rng.integers(0, len(anchors), config.kept_rows)] if anchors else []
            yield [ItemBatch(groups[group], texts)]
