"""The network that is trained and exported: an encoder, pooling, and a head.

The answer is read from the mean over the target entity's tokens when the input names one (type 1), from the mean
over all tokens otherwise, so one head serves both questions. Knows nothing of data or files beyond the encoder's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from models.tasks import Task


class Classifier(nn.Module):
    """Encoder and head; `forward` maps ids, mask and types, each (batch, length), to logits (batch, labels)."""

    def __init__(self, encoder: nn.Module, head: nn.Linear | OrderedHead, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = head

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
        logits: Tensor = self.head(self.dropout(pool(hidden, mask, types)))
        return logits


class OrderedHead(nn.Module):
    """Logits `score * position + bias` for labels on one axis at equal distances from -1 to 1.

    The adjacent-categories logit model (Agresti 2010, ch. 4). What a row that was labelled among the two ends only
    teaches, how far from the middle it lies, decides about the middle label too, though its loss never names it.
    """

    positions: Tensor

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(labels))
        self.register_buffer("positions", torch.linspace(-1, 1, labels), persistent=False)

    def forward(self, pooled: Tensor) -> Tensor:
        """(batch, width) to (batch, labels)."""
        return self.score(pooled) * self.positions + self.bias

    @property
    def weight(self) -> Tensor:
        """(labels, width): the same head written as one linear layer."""
        return self.positions.unsqueeze(1) * self.score.weight


def pool(hidden: Tensor, mask: Tensor, types: Tensor) -> Tensor:
    """(batch, length, width) to (batch, width): the mean over the target's tokens, or over all where none is."""
    targeted = types.amax(dim=1, keepdim=True)
    chosen = (types * targeted + mask * (1 - targeted)).to(hidden.dtype)
    total = (hidden * chosen.unsqueeze(-1)).sum(dim=1)
    return total / chosen.sum(dim=1, keepdim=True)


def from_base(base: str, task: Task) -> Classifier:
    """A classifier on a pretrained encoder: a local folder in the transformers format, or a hub name.

    Attention dropout is off: on CPU it forces the slow attention kernel, for no measured gain.
    """
    config = AutoConfig.from_pretrained(base, attention_probs_dropout_prob=0.0)
    # Encoders of the BERT family come without a pooler here: ours replaces it.
    options = {"add_pooling_layer": False} if config.model_type in ("bert", "xlm-roberta", "roberta") else {}
    encoder = AutoModel.from_pretrained(base, config=config, dtype=torch.float32, **options)
    types = getattr(getattr(encoder, "embeddings", None), "token_type_embeddings", None)
    if types is None or types.num_embeddings < 2:
        raise ValueError(f"the encoder {base} has no two token types, which mark the target entity")
    with torch.no_grad():
        # Type 1 was never trained in e5: it starts where type 0 is.
        types.weight[1] = types.weight[0]
    head = OrderedHead if task.ordered else nn.Linear
    return Classifier(encoder, head(config.hidden_size, len(task.labels)))


def graph_weights(model: Classifier) -> dict[str, NDArray[np.float32]]:
    """All weights under the names that `models.graph` reads, the head as one linear layer."""
    found = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    found |= {"head.weight": model.head.weight, "head.bias": model.head.bias}
    return {name: tensor.detach().float().cpu().numpy() for name, tensor in found.items()}


def base_file(base: str, name: str) -> Path:
    """One file of a base encoder, fetched from the hub where the base is a hub name."""
    local = Path(base) / name
    return local if local.exists() else Path(hf_hub_download(base, name))
