"""The network that scores items after a history: self-attention over events, and attention of each candidate to them.

score(c) = u·v_c + Σ_h w_h log(1 + Σ_t exp e_h(c, t)) + o log(1 + n_c) + Σ_i B_ic

- u is the user vector, read from the whole history, and v_c is the vector of candidate c.
- Each head h of the candidate attention adds the score of the events that concern the candidate.
- n_c is the number of events with the item itself.
- B_ic is the weight of the user's item i for an item that is new to the user (`models.ranking.item_neighbours`). Older
  items may count less.

Log-sum-exp is the potential whose gradient is softmax attention with an empty slot (Ramsauer et al. 2021). So three
purchases weigh more than one, and a history without anything similar adds nothing. The attention weights tell by how
much the score falls without an event.

`models.ranking.recommender` computes the same without torch. This module knows torch, no files and no data.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize

from models.networks.attention import SelfAttention
from models.ranking.cold_start import ColdStart
from models.ranking.events import AGE_BUCKETS, EVENT_TYPES, POSITION_BUCKETS
from models.ranking.item_neighbours import ItemNeighbours
from models.ranking.recommender import SCALE

MASKED_SCORE = -1e4
"""The score of an empty position or an impossible item, low enough for a softmax of zero."""


@dataclass(frozen=True, slots=True)
class HistoryShape:
    """The sizes of a history network.

    Item vectors have `width` dimensions, and the states of events `inner`, in `heads` attention heads. The candidate
    attention has `eyes` heads of `eye` dimensions each.
    """

    width: int
    inner: int
    layers: int
    heads: int
    eyes: int
    eye: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreWeights:
    """The factors of a score's components after training.

    The components are user vector and attention, neighbours, and how often the user took the item.
    """

    attention: float = 1.0
    neighbours: float = 1.0
    often: float = 1.0


AS_TRAINED = ScoreWeights()


@dataclass(frozen=True, slots=True)
class HistoryBatch:
    """A batch of histories, all (batch, events).

    `items` are item indices, -1 for padding. `event_types`, `ages` and `positions` are buckets of
    `models.ranking.events`.
    """

    items: Tensor
    event_types: Tensor
    ages: Tensor
    positions: Tensor

    @property
    def mask(self) -> Tensor:
        return self.items >= 0


class LogSumExp(torch.autograd.Function):
    """log(1 + Σ_t exp(query_c · key_bt + again_bt [item of t is c])), for the candidates 0 to n - 1.

    The shapes are queries (items, size), keys (batch, events, size), again and items (batch, events). The result is
    (batch, items). The energies (batch, items, events) are large, and memory traffic on them dominates a training step.
    So they are allocated once and changed in place. An event whose item is -1 counts only by its key.
    """

    @staticmethod
    def forward(context: Any, queries: Tensor, keys: Tensor, again: Tensor, items: Tensor) -> Tensor:
        exponentials = queries @ keys.transpose(1, 2)
        rows, events = torch.nonzero(items >= 0, as_tuple=True)
        exponentials[rows, items[rows, events], events] += again[rows, events]
        exponentials = exponentials.clamp_(max=60.0).exp_()
        total = exponentials.sum(dim=-1) + 1
        context.save_for_backward(queries, keys, items, exponentials, total)
        return total.log()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        queries, keys, items, exponentials, total = context.saved_tensors
        slopes = exponentials * (gradients[0] / total)[..., None]
        rows, events = torch.nonzero(items >= 0, as_tuple=True)
        again = torch.zeros_like(keys[..., 0])
        again[rows, events] = slopes[rows, items[rows, events], events]
        return torch.einsum("bct,bte->ce", slopes, keys), slopes.transpose(1, 2) @ queries, again, None


class Block(nn.Module):
    """A transformer layer with pre-normalisation (Xiong et al. 2020)."""

    def __init__(self, shape: HistoryShape, dropout: float) -> None:
        super().__init__()
        inner = shape.inner
        self.attention_norm, self.inner_norm = nn.LayerNorm(inner), nn.LayerNorm(inner)
        self.attention = SelfAttention(inner, shape.heads, inner)
        self.inner, self.output = nn.Linear(inner, 2 * inner), nn.Linear(2 * inner, inner)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states = states + self.dropout(self.attention(self.attention_norm(states), mask)[0])
        result: Tensor = states + self.dropout(self.output(gelu(self.inner(self.inner_norm(states)))))
        return result


class HistoryNetwork(nn.Module):
    """A network that scores the items of its catalogue after histories of them.

    Some buffers are set rather than learned:

    - `known` (items,) is 0 for an item that nobody took in training, so that its ID embedding is untrained.
    - `often` (1,) is the weight of how often the user took an item.
    - `neighbours` and `nearness` (items, neighbours) are the indices and weights of an item's neighbours. `fade` (1,)
      is their decay per later event.
    - `newcomers` (3,) are the cold-start weights bias, neighbours and taken, and `kin` the nearest known items
      (`models.ranking.cold_start`). They are empty if cold items get no scores. `forward` does not use them.
    """

    known: Tensor
    often: Tensor
    neighbours: Tensor
    nearness: Tensor
    fade: Tensor
    newcomers: Tensor
    kin: Tensor

    def __init__(self, shape: HistoryShape, items: int, dropout: float = 0.2) -> None:
        super().__init__()
        width, inner = shape.width, shape.inner
        self.shape = shape
        self.ids = nn.Embedding(items, width)
        self.register_buffer("known", torch.ones(items))
        self.enter = nn.Linear(width, inner)
        self.kinds, self.ages, self.places = (
            nn.Embedding(size, inner) for size in (len(EVENT_TYPES), AGE_BUCKETS, POSITION_BUCKETS)
        )
        self.blocks = nn.ModuleList(Block(shape, dropout) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(inner)
        self.reader = nn.Linear(inner, shape.heads)
        self.taste = nn.Linear(inner, width)
        self.look = nn.Linear(width, shape.eyes * shape.eye)
        self.shown = nn.Linear(inner, shape.eyes * shape.eye)
        self.strength = nn.Linear(inner, shape.eyes)
        self.again = nn.Parameter(torch.full((AGE_BUCKETS, shape.eyes), 2.0))
        self.eyes = nn.Parameter(torch.full((shape.eyes,), 1.0))
        self.register_buffer("often", torch.zeros(1))
        self.register_buffer("neighbours", torch.zeros(items, 0, dtype=torch.int32))
        self.register_buffer("nearness", torch.zeros(items, 0))
        self.register_buffer("fade", torch.ones(1))
        self.register_buffer("newcomers", torch.zeros(0))
        self.register_buffer("kin", torch.zeros(items, 0, dtype=torch.int32))
        self.dropout = nn.Dropout(dropout)
        for table in (self.ids, self.kinds, self.ages, self.places):
            nn.init.normal_(table.weight, std=0.02)
        nn.init.constant_(self.strength.bias, -3.0)

    def item_vectors(self, texts: Tensor, known: Tensor) -> Tensor:
        """Return the item vectors for the vectors (items, width) of their texts.

        `known` (items,) is 0 for items whose ID embedding is left out, and 1 otherwise.
        """
        return normalize(texts, dim=-1) * SCALE + self.ids.weight * known[:, None]

    def forward(self, histories: HistoryBatch, vectors: Tensor) -> Tensor:
        """Return the scores (batch, items) of all items; vectors (items, width) are theirs."""
        user_vectors, states = self.encode(histories, vectors)
        scores = user_vectors @ vectors.T + self.score_events(histories, states, vectors)
        if self.nearness.shape[1]:
            weights = dense_neighbour_weights(self.neighbours, self.nearness)
            scores = scores + score_neighbours(histories.items, weights, self.fade)
        return scores

    def set_neighbours(self, neighbours: ItemNeighbours) -> None:
        self.neighbours, self.nearness = torch.from_numpy(neighbours.indices), torch.from_numpy(neighbours.weights)
        self.fade.fill_(neighbours.recency_decay)

    @torch.no_grad()
    def scale_components(self, scales: ScoreWeights) -> None:
        for parameter in (self.taste.weight, self.taste.bias, self.eyes):
            parameter.mul_(scales.attention)
        self.nearness.mul_(scales.neighbours)
        self.often.mul_(scales.often)

    def set_cold_start(self, cold_start: ColdStart) -> None:
        self.newcomers, self.kin = (
            torch.tensor(list(asdict(cold_start.weights).values())),
            torch.from_numpy(cold_start.nearest_items),
        )

    def encode(self, histories: HistoryBatch, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the user vectors (batch, width) and the states of the events (batch, events, inner)."""
        states = self.enter(vectors)[histories.items.clamp_min(0)] + self.kinds(histories.event_types)
        states = self.dropout(states + self.ages(histories.ages) + self.places(histories.positions))
        for block in self.blocks:
            states = block(states, histories.mask)
        states = self.norm(states)
        weights = self.reader(states).masked_fill(~histories.mask[..., None], MASKED_SCORE).softmax(dim=1)
        batch, events, inner = states.shape
        by_head = states.view(batch, events, self.shape.heads, inner // self.shape.heads)
        pooled = torch.einsum("beh,behd->bhd", weights, by_head).reshape(batch, inner)
        user_vectors: Tensor = self.taste(self.dropout(pooled))
        return user_vectors, states

    def score_events(self, histories: HistoryBatch, states: Tensor, vectors: Tensor) -> Tensor:
        """Return what candidate attention and repeated events add to the scores, (batch, items)."""
        size = self.shape.eye
        queries, keys = self.look(vectors), self.shown(states) / size**0.5
        strength = self.strength(states).masked_fill(~histories.mask[..., None], MASKED_SCORE)
        again = self.again[histories.ages]
        scores = vectors.new_zeros(len(states), len(vectors))
        for head in range(self.shape.eyes):
            dimensions = slice(head * size, (head + 1) * size)
            head_queries = torch.cat([queries[:, dimensions], torch.ones_like(queries[:, :1])], dim=1)
            head_keys = torch.cat([keys[..., dimensions], strength[..., head : head + 1]], dim=2)
            potentials: Tensor = LogSumExp.apply(head_queries, head_keys, again[..., head], histories.items)  # type: ignore[no-untyped-call]
            scores = scores + self.eyes[head] * potentials
        return scores + self.often * count_items(histories.items, len(vectors)).log1p()


def dense_neighbour_weights(neighbours: Tensor, weights: Tensor) -> Tensor:
    """Return the weight of each item for each item, (items, items), from the sparse form of `ItemNeighbours`."""
    return weights.new_zeros(2 * (len(weights),)).scatter_(1, neighbours.long(), weights)


def score_neighbours(items: Tensor, weights: Tensor, decay: Tensor) -> Tensor:
    """Return the scores (batch, items) that the items of histories give to all other items, and zero to themselves.

    `items` (batch, events) are the histories and `weights` (items, items) the weight of each item for each. An item
    counts by its newest event, multiplied by `decay` (1,) for each later event.
    """
    mask = items >= 0
    events_after = mask.sum(dim=1, keepdim=True) - mask.cumsum(dim=1)
    newest = weights.new_zeros(len(items), len(weights) + 1)
    newest.scatter_reduce_(1, items.where(mask, len(weights)), decay**events_after, "amax")
    return (newest[:, :-1] @ weights) * (count_items(items, len(weights)) == 0)


def count_items(items: Tensor, size: int) -> Tensor:
    """Count each of the items 0 to `size` - 1 per row; items (batch, events), -1 for padding; (batch, size)."""
    counts = torch.zeros(len(items), size + 1, device=items.device)
    ones = torch.ones_like(items, dtype=counts.dtype)
    return counts.scatter_add_(1, items.where(items >= 0, size), ones)[:, :size]
