"""The network that scores items after a history: self-attention over events, and attention of each candidate to them.

score(c) = u·v_c + Σ_h w_h log(1 + Σ_t exp e_h(c, t)) + o log(1 + n_c) + Σ_i B_ic: the taste u is read from all of the
history, each head of the candidate's own attention adds what the events that concern it say, and n_c of them are of the
item itself; of one that is new to the user, B tells which of their items i are its neighbours
(`models.ranking.item_neighbours`), of
which older ones may count less. Log-sum-exp is the potential whose gradient is softmax attention with an empty slot
(Ramsauer et al. 2021), so that three purchases weigh more than one, a history without anything alike adds nothing, and
the attention weights say by how much the score falls without an event. `models.ranking.recommender` computes the same
without
torch. Knows torch, no files and no data.
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

NEVER = -1e4


@dataclass(frozen=True, slots=True)
class Shape:
    """Item vectors are `width` wide and the events' states `inner`, in `heads` parts; `eyes` are the heads with which a
    candidate looks at events, each of `eye` dimensions."""

    width: int
    inner: int
    layers: int
    heads: int
    eyes: int
    eye: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreWeights:
    """By what the parts of a score are multiplied once they are trained or found: taste and attention, neighbours, and
    how often an item was taken."""

    attention: float = 1.0
    neighbours: float = 1.0
    often: float = 1.0


AS_TRAINED = ScoreWeights()


@dataclass(frozen=True, slots=True)
class HistoryBatch:
    """A batch: `items` (batch, events) numbers, -1 where there is no event; `kinds`, and `ages` and `places` as
    `ranking.age_of` and `ranking.place_of` give them, all (batch, events)."""

    items: Tensor
    kinds: Tensor
    ages: Tensor
    places: Tensor

    @property
    def mask(self) -> Tensor:
        return self.items >= 0


class LogSumExp(torch.autograd.Function):
    """log(1 + Σ_t exp(asked_c · shown_bt + again_bt [item of t is c])), for candidates that are items 0 to n - 1.

    asked (items, size); shown (batch, events, size), again and items (batch, events); gives (batch, items). The
    energies (batch, items, events) are large, and passing over them is what a step of training takes its time for, so
    they are made once and changed in place. An event whose item is -1 counts only by `shown`.
    """

    @staticmethod
    def forward(context: Any, asked: Tensor, shown: Tensor, again: Tensor, items: Tensor) -> Tensor:
        raised = asked @ shown.transpose(1, 2)
        rows, events = torch.nonzero(items >= 0, as_tuple=True)
        raised[rows, items[rows, events], events] += again[rows, events]
        raised = raised.clamp_(max=60.0).exp_()
        total = raised.sum(dim=-1) + 1
        context.save_for_backward(asked, shown, items, raised, total)
        return total.log()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        asked, shown, items, raised, total = context.saved_tensors
        found = raised * (gradients[0] / total)[..., None]
        rows, events = torch.nonzero(items >= 0, as_tuple=True)
        again = torch.zeros_like(shown[..., 0])
        again[rows, events] = found[rows, items[rows, events], events]
        return torch.einsum("bct,bte->ce", found, shown), found.transpose(1, 2) @ asked, again, None


class Block(nn.Module):
    """A layer with its norms before its parts (Xiong et al. 2020)."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        inner = shape.inner
        self.attention_norm, self.inner_norm = nn.LayerNorm(inner), nn.LayerNorm(inner)
        self.attention = SelfAttention(inner, shape.heads, inner)
        self.inner, self.output = nn.Linear(inner, 2 * inner), nn.Linear(2 * inner, inner)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states = states + self.dropout(self.attention(self.attention_norm(states), mask)[0])
        added: Tensor = states + self.dropout(self.output(gelu(self.inner(self.inner_norm(states)))))
        return added


class HistoryNetwork(nn.Module):
    """Scores of the items that it was made for, after histories of them.

    `known` (items,) is 0 for an item whose id says nothing, because nobody had anything to do with it in training.
    `often` (1,) is the weight of how often an item was taken, and `neighbours` and `nearness` (items, any number) what
    an item says of others, times `fade` (1,) for every event after it: they come to the network, and are not learned.
    So are `newcomers` (3,), always, said and taken of `models.ranking.cold_start`, and `kin`, if anything is told to
    them: that
    is no part of what `forward` gives.
    """

    known: Tensor
    often: Tensor
    neighbours: Tensor
    nearness: Tensor
    fade: Tensor
    newcomers: Tensor
    kin: Tensor

    def __init__(self, shape: Shape, items: int, dropout: float = 0.2) -> None:
        super().__init__()
        width, inner = shape.width, shape.inner
        self.shape = shape
        self.ids = nn.Embedding(items, width)
        self.register_buffer("known", torch.ones(items))
        self.enter = nn.Linear(width, inner)
        self.kinds, self.ages, self.places = (
            nn.Embedding(n, inner) for n in (len(EVENT_TYPES), AGE_BUCKETS, POSITION_BUCKETS)
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
        """Texts' vectors (items, width) to item vectors; known (items,) is 0 where the id is not to count, else 1."""
        return normalize(texts, dim=-1) * SCALE + self.ids.weight * known[:, None]

    def forward(self, histories: HistoryBatch, vectors: Tensor) -> Tensor:
        """Scores (batch, items) of all items; vectors (items, width) are theirs."""
        taste, states = self.read(histories, vectors)
        scores = taste @ vectors.T + self.attended(histories, states, vectors)
        if self.nearness.shape[1]:
            scores = scores + near(histories.items, between(self.neighbours, self.nearness), self.fade)
        return scores

    def set_neighbours(self, neighbours: ItemNeighbours) -> None:
        self.neighbours, self.nearness = torch.from_numpy(neighbours.indices), torch.from_numpy(neighbours.weights)
        self.fade.fill_(neighbours.recency_decay)

    @torch.no_grad()
    def scale_components(self, scales: ScoreWeights) -> None:
        for one in (self.taste.weight, self.taste.bias, self.eyes):
            one.mul_(scales.attention)
        self.nearness.mul_(scales.neighbours)
        self.often.mul_(scales.often)

    def set_cold_start(self, newcomers: ColdStart) -> None:
        self.newcomers, self.kin = (
            torch.tensor(list(asdict(newcomers.weights).values())),
            torch.from_numpy(newcomers.nearest_items),
        )

    def read(self, histories: HistoryBatch, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """The taste (batch, width) and the events' states (batch, events, inner)."""
        states = self.enter(vectors)[histories.items.clamp_min(0)] + self.kinds(histories.kinds)
        states = self.dropout(states + self.ages(histories.ages) + self.places(histories.places))
        for block in self.blocks:
            states = block(states, histories.mask)
        states = self.norm(states)
        weights = self.reader(states).masked_fill(~histories.mask[..., None], NEVER).softmax(dim=1)
        batch, events, inner = states.shape
        parts = states.view(batch, events, self.shape.heads, inner // self.shape.heads)
        pooled = torch.einsum("beh,behd->bhd", weights, parts).reshape(batch, inner)
        taste: Tensor = self.taste(self.dropout(pooled))
        return taste, states

    def attended(self, histories: HistoryBatch, states: Tensor, vectors: Tensor) -> Tensor:
        """What the candidates' own attention adds, (batch, items)."""
        size = self.shape.eye
        asked, shown = self.look(vectors), self.shown(states) / size**0.5
        strength = self.strength(states).masked_fill(~histories.mask[..., None], NEVER)
        again = self.again[histories.ages]
        added = vectors.new_zeros(len(states), len(vectors))
        for eye in range(self.shape.eyes):
            part = slice(eye * size, (eye + 1) * size)
            own = torch.cat([asked[:, part], torch.ones_like(asked[:, :1])], dim=1)
            events = torch.cat([shown[..., part], strength[..., eye : eye + 1]], dim=2)
            heard: Tensor = LogSumExp.apply(own, events, again[..., eye], histories.items)  # type: ignore[no-untyped-call]
            added = added + self.eyes[eye] * heard
        return added + self.often * times_taken(histories.items, len(vectors)).log1p()


def between(numbers: Tensor, weights: Tensor) -> Tensor:
    """What each item says of each, (items, items), of what is kept as in `Neighbours`."""
    return weights.new_zeros(2 * (len(weights),)).scatter_(1, numbers.long(), weights)


def near(items: Tensor, between: Tensor, fade: Tensor) -> Tensor:
    """What distinct ones of `items` (batch, events) say of those that are not among them, (batch, items).

    `between` (items, items) is what each says of each; an item counts by its newest event, `fade` (1,) times less for
    every event after that.
    """
    mask = items >= 0
    after = mask.sum(dim=1, keepdim=True) - mask.cumsum(dim=1)
    newest = between.new_zeros(len(items), len(between) + 1)
    newest.scatter_reduce_(1, items.where(mask, len(between)), fade**after, "amax")
    return (newest[:, :-1] @ between) * (times_taken(items, len(between)) == 0)


def times_taken(items: Tensor, of: int) -> Tensor:
    """How often each of the items 0 to `of` - 1 is in each row; items (batch, events), -1 for none; (batch, of)."""
    counts = torch.zeros(len(items), of + 1, device=items.device)
    ones = torch.ones_like(items, dtype=counts.dtype)
    return counts.scatter_add_(1, items.where(items >= 0, of), ones)[:, :of]
