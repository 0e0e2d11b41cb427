"""The networks that are trained and exported: an encoder, pooling, and for a fixed set of labels one linear head.

The answer is read from the mean over the target entity's tokens when the input names one (type 1), from the mean
over all tokens otherwise, so one head serves both questions. Knows nothing of data or files beyond the encoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from models.tasks import Task


class Network(nn.Module):
    """An encoder and what it is followed by."""

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder

    def states(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, ...]:
        """Of the embeddings and of every layer, each (batch, length, width)."""
        told = self.encoder(input_ids=ids, attention_mask=mask, token_type_ids=types, output_hidden_states=True)
        found: tuple[Tensor, ...] = told.hidden_states
        return found


class Classifier(Network):
    """Encoder and head; `forward` maps ids, mask and types, each (batch, length), to logits (batch, labels)."""

    def __init__(self, encoder: PreTrainedModel, width: int, labels: int, dropout: float = 0.1) -> None:
        super().__init__(encoder)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, labels)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        return self.answer(self.states(ids, mask, types)[-1], mask, types)

    def answer(self, hidden: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        """The last layer's states to logits (batch, labels)."""
        logits: Tensor = self.head(self.dropout(pool_hidden(hidden, mask, types)))
        return logits


class Embedder(Network):
    """`forward` maps ids, mask and types, each (batch, length), to the text's vector (batch, width)."""

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        return pool_hidden(self.states(ids, mask, types)[-1], mask, types)


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


def pool_hidden(hidden: Tensor, mask: Tensor, types: Tensor) -> Tensor:
    """(batch, length, width) to (batch, width): the mean over the target's tokens, or over all where none is."""
    targeted = types.amax(dim=1, keepdim=True)
    chosen = (types * targeted + mask * (1 - targeted)).to(hidden.dtype)
    total = (hidden * chosen.unsqueeze(-1)).sum(dim=1)
    return total / chosen.sum(dim=1, keepdim=True)


def from_pretrained(base: str, task: Task) -> Classifier:
    """A classifier on a pretrained encoder: a local folder in the transformers format, or a hub name."""
    encoder = load_base_encoder(base)
    return Classifier(encoder, encoder.config.hidden_size, len(task.labels))


def load_base_encoder(base: str) -> PreTrainedModel:
    """A pretrained encoder: a local folder in the transformers format, or a hub name.

    Attention dropout is off: on CPU it forces the slow attention kernel, for no measured gain.
    """
    config = AutoConfig.from_pretrained(base, attention_probs_dropout_prob=0.0)
    # Encoders of the BERT family come without a pooler here: ours replaces it.
    options = {"add_pooling_layer": False} if config.model_type in ("bert", "xlm-roberta", "roberta") else {}
    encoder: PreTrainedModel = AutoModel.from_pretrained(base, config=config, dtype=torch.float32, **options)
    types = getattr(getattr(encoder, "embeddings", None), "token_type_embeddings", None)
    if types is None or types.num_embeddings < 2:
        raise ValueError(f"the encoder {base} has no two token types, which mark what is asked about")
    with torch.no_grad():
        # Type 1 was never trained in e5: it starts where type 0 is.
        types.weight[1] = types.weight[0]
    return encoder


def keep_layers(model: AnyNetwork, layers: Sequence[int]) -> AnyNetwork:
    """The same network with only these of its encoder's layers, in place."""
    every = list(encoder_layers(model))
    model.encoder.encoder.layer = nn.ModuleList([every[number] for number in layers])  # type: ignore[union-attr]
    model.encoder.config.num_hidden_layers = len(layers)
    return model


def encoder_layers(model: Network) -> nn.ModuleList:
    layers: nn.ModuleList = model.encoder.encoder.layer  # type: ignore[union-attr, assignment]
    return layers


def graph_weights(model: Network) -> dict[str, NDArray[np.float32]]:
    """All weights under the names that `models.graph.builder` reads."""
    return {name: tensor.float().cpu().numpy() for name, tensor in model.state_dict().items()}


def base_file(base: str, name: str) -> Path:
    """One file of a base encoder, fetched from the hub where the base is a hub name."""
    local = Path(base) / name
    return local if local.exists() else Path(hf_hub_download(base, name))
