"""The network behind intents and replies: one encoder, a vector for each text, and what teaches it.

Intents are told apart by the cosine between a text's vector and a prototype of each, with a margin while training
(large margin cosine loss, Wang et al. 2018), which leaves room between the intents for what is none of them. A reply
fits a dialogue by the cosine of their projected vectors (dual encoder, Henderson et al. 2019). Knows torch, no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, normalize, one_hot
from transformers import PreTrainedModel

from models.networks.encoder import Network, pool_hidden
from models.text.encoding import Encoding

SCALE, MARGIN = 24.0, 0.25
REPLY_SCALE = 20.0
OUT_OF_SCOPE = -1
"""The label of a row that is none of its set's intents."""

OUT_OF_SCOPE_WEIGHT = 0.5
"""Of the loss on such rows (outlier exposure, Hendrycks et al. 2019)."""


class IntentNetwork(Network):
    """`forward` maps ids, mask and types, each (batch, length), to vectors (batch, width)."""

    def __init__(self, encoder: PreTrainedModel, width: int, labels: Mapping[str, int], dropout: float = 0.1) -> None:
        super().__init__(encoder)
        self.dropout = nn.Dropout(dropout)
        self.prototypes = nn.ParameterDict({name: nn.Parameter(torch.randn(n, width)) for name, n in labels.items()})
        self.dialogue, self.reply = (nn.Linear(width, width, bias=False) for _ in range(2))
        for projection in (self.dialogue, self.reply):
            nn.init.eye_(projection.weight)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        return pool_hidden(self.states(ids, mask, types)[-1], mask, types)


@dataclass(frozen=True, slots=True)
class IntentRow:
    """One tokenised utterance; `label` is OUTSIDE or an index of the set `name`, None where nobody said."""

    tokens: Encoding
    name: str
    label: int | None


@dataclass(frozen=True, slots=True)
class ReplyRow:
    """One tokenised dialogue, the reply that was given, and others that were not."""

    tokens: Encoding
    reply: Encoding
    others: tuple[Encoding, ...]


def intent_loss(network: IntentNetwork, vectors: Tensor, rows: Sequence[IntentRow]) -> Tensor:
    """Mean over the labelled rows, each among its own set's intents; vectors (rows, width)."""
    total, count = vectors.new_zeros(()), 0
    for name in sorted({row.name for row in rows if row.label is not None}):
        own = [number for number, row in enumerate(rows) if row.name == name and row.label is not None]
        labels = torch.tensor([rows[number].label for number in own], device=vectors.device)
        cosines = normalize(network.dropout(vectors[own])) @ normalize(network.prototypes[name]).T
        total = total + margin_loss(cosines, labels)
        count += len(own)
    return total / max(1, count)


def margin_loss(cosines: Tensor, labels: Tensor) -> Tensor:
    """Summed over the rows; cosines (rows, intents), labels (rows,) indices or OUTSIDE.

    Cross-entropy in which the right cosine is made smaller by MARGIN. A row outside is to be as far from every intent.
    """
    inside = labels != OUT_OF_SCOPE
    right = one_hot(labels.clamp_min(0), cosines.shape[1])
    known = cross_entropy(SCALE * (cosines - MARGIN * right)[inside], labels[inside], reduction="sum")
    outside = -log_softmax(SCALE * cosines[~inside], dim=-1).mean(dim=-1).sum()
    return known + OUT_OF_SCOPE_WEIGHT * outside


def reply_loss(network: IntentNetwork, dialogues: Tensor, replies: Tensor, right: Tensor) -> Tensor:
    """Each dialogue's reply among all of the batch; dialogues (rows, width), replies (texts, width), right (rows,)."""
    cosines = normalize(network.dialogue(dialogues)) @ normalize(network.reply(replies)).T
    return cross_entropy(REPLY_SCALE * cosines, right)
