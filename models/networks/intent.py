"""The network behind intents and replies: an encoder, a vector per text, and its losses.

An intent is chosen by the cosine between a text's vector and a prototype per intent. Training adds a margin (large
margin cosine loss, Wang et al. 2018), which leaves room between the intents for out-of-scope texts. A reply fits a
dialogue by the cosine of their projected vectors (dual encoder, Henderson et al. 2019). This module knows torch and no
files.
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
"""The label of a row that has none of its set's intents."""

OUT_OF_SCOPE_WEIGHT = 0.5
"""The weight of the loss on out-of-scope rows (outlier exposure, Hendrycks et al. 2019)."""


class IntentNetwork(Network):
    """An encoder with prototypes per label set and the projections of the reply ranker.

    `labels` are the numbers of intents by label set. `forward` maps ids, mask and types, each (batch, length), to
    vectors (batch, width).
    """

    def __init__(self, encoder: PreTrainedModel, width: int, labels: Mapping[str, int], dropout: float = 0.1) -> None:
        super().__init__(encoder)
        self.dropout = nn.Dropout(dropout)
        self.prototypes = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(count, width)) for name, count in labels.items()}
        )
        self.dialogue, self.reply = (nn.Linear(width, width, bias=False) for _ in range(2))
        for projection in (self.dialogue, self.reply):
            nn.init.eye_(projection.weight)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        return pool_hidden(self.states(ids, mask, types)[-1], mask, types)


@dataclass(frozen=True, slots=True)
class IntentRow:
    """A tokenised utterance. `label` is an index in the label set `name`, OUT_OF_SCOPE, or None without a label."""

    tokens: Encoding
    name: str
    label: int | None


@dataclass(frozen=True, slots=True)
class ReplyRow:
    """A tokenised dialogue with the agent's reply and replies that the agent did not choose."""

    tokens: Encoding
    reply: Encoding
    negatives: tuple[Encoding, ...]


def intent_loss(network: IntentNetwork, vectors: Tensor, rows: Sequence[IntentRow]) -> Tensor:
    """Return the mean loss of the labelled rows, each over the intents of its label set; vectors (rows, width)."""
    total, count = vectors.new_zeros(()), 0
    for name in sorted({row.name for row in rows if row.label is not None}):
        indices = [index for index, row in enumerate(rows) if row.name == name and row.label is not None]
        labels = torch.tensor([rows[index].label for index in indices], device=vectors.device)
        cosines = normalize(network.dropout(vectors[indices])) @ normalize(network.prototypes[name]).T
        total = total + margin_loss(cosines, labels)
        count += len(indices)
    return total / max(1, count)


def margin_loss(cosines: Tensor, labels: Tensor) -> Tensor:
    """Return the loss summed over the rows; cosines (rows, intents), labels (rows,) indices or OUT_OF_SCOPE.

    It is the cross-entropy with MARGIN subtracted from the correct cosine. An out-of-scope row is pushed to the same
    distance from every intent.
    """
    in_scope = labels != OUT_OF_SCOPE
    correct = one_hot(labels.clamp_min(0), cosines.shape[1])
    in_scope_loss = cross_entropy(SCALE * (cosines - MARGIN * correct)[in_scope], labels[in_scope], reduction="sum")
    out_of_scope_loss = -log_softmax(SCALE * cosines[~in_scope], dim=-1).mean(dim=-1).sum()
    return in_scope_loss + OUT_OF_SCOPE_WEIGHT * out_of_scope_loss


def reply_loss(network: IntentNetwork, dialogues: Tensor, replies: Tensor, correct: Tensor) -> Tensor:
    """Return the loss of each dialogue's reply over all replies of the batch.

    dialogues (rows, width); replies (texts, width); correct (rows,), the index of each dialogue's reply.
    """
    cosines = normalize(network.dialogue(dialogues)) @ normalize(network.reply(replies)).T
    return cross_entropy(REPLY_SCALE * cosines, correct)
