"""The encoder networks that are trained and exported: an encoder, pooling, and a linear head for fixed labels.

Pooling averages the target entity's tokens (type 1) if the input names an entity, and all tokens otherwise. So one head
serves both cases. This module knows no data, and no files but the encoder's.
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

MARKS_ENTITIES = "marks_entities"
"""The key in a base's configuration that says that its token type 1 has learned to mark what an answer is about."""


class Network(nn.Module):
    """An encoder, and the base class of the networks on it.

    `entity_embedding` (width,) marks tokens of type 1 for an encoder without token types. Other encoders have none.
    """

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.entity_embedding: nn.Parameter | None = None
        if token_type_embeddings(encoder) is None:
            self.entity_embedding = nn.Parameter(torch.zeros(encoder.config.hidden_size))

    def states(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, ...]:
        """Return the states of the embeddings and of every layer, each (batch, length, width)."""
        if self.entity_embedding is None:
            inputs = {"input_ids": ids, "token_type_ids": types}
        else:
            words: Tensor = self.encoder.get_input_embeddings()(ids)
            inputs = {"inputs_embeds": words + types.unsqueeze(-1).to(words.dtype) * self.entity_embedding}
        states: tuple[Tensor, ...] = self.encoder(
            **inputs, attention_mask=mask, output_hidden_states=True
        ).hidden_states
        return states

    def finish(self) -> None:
        """Fold parameters that only the training needs into the others, before the weights are saved."""


class SourceBias(nn.Module):
    """A bias of the logits for each source of training rows, learned with the network.

    What a source's annotators call neutral is theirs alone. The bias takes it up, so that the network learns what the
    sources share. `choices` (sources, labels) are True for the labels that a source has. A source is told apart from
    the others only by the labels that it has, so its bias is centred over them and zero elsewhere. A source without any
    choice has no bias. Each bias begins with `priors` (sources, labels), the logarithms of the shares of the source's
    labels, as in logit adjustment (Menon et al. 2021).
    """

    choices: Tensor

    def __init__(self, choices: Tensor, priors: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(priors.float().clone())
        self.register_buffer("choices", choices.float())

    def forward(self, sources: Tensor) -> Tensor:
        """Return the biases (rows, labels) of sources (rows,)."""
        return self.centered()[sources]

    def mean(self) -> Tensor:
        """Return the mean bias (labels,) over the sources, for texts of any other source."""
        mean: Tensor = self.centered().sum(dim=0) / self.choices.sum(dim=0).clamp_min(1.0)
        return mean

    def centered(self) -> Tensor:
        """Return the biases (sources, labels), each with the mean 0 over the labels that its source has."""
        total = (self.bias * self.choices).sum(dim=1, keepdim=True)
        mean = total / self.choices.sum(dim=1, keepdim=True).clamp_min(1.0)
        return (self.bias - mean) * self.choices


class Classifier(Network):
    """An encoder with a head. `forward` maps ids, mask and types, each (batch, length), to logits (batch, labels).

    `sources` is there during training alone. `finish` puts their mean into the head.
    """

    def __init__(self, encoder: PreTrainedModel, width: int, labels: int, dropout: float = 0.1) -> None:
        super().__init__(encoder)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, labels)
        self.sources: SourceBias | None = None

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        logits = self.classify(self.states(ids, mask, types)[-1], mask, types)
        return logits if self.sources is None else logits + self.sources.mean()

    def classify(self, hidden: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        """Map the last layer's states to logits (batch, labels), without a source's bias."""
        logits: Tensor = self.head(self.dropout(pool_hidden(hidden, mask, types)))
        return logits

    @torch.no_grad()
    def finish(self) -> None:
        """Add the mean bias of the sources to the head's, and forget the sources."""
        if self.sources is not None:
            self.head.bias.add_(self.sources.mean())
            self.sources = None


class Embedder(Network):
    """An encoder of texts. `forward` maps ids, mask and types, each (batch, length), to vectors (batch, width)."""

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> Tensor:
        return pool_hidden(self.states(ids, mask, types)[-1], mask, types)


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


def pool_hidden(hidden: Tensor, mask: Tensor, types: Tensor) -> Tensor:
    """Return the mean (batch, width) of the states (batch, length, width) over the entity's tokens.

    A row without an entity gets the mean over all its tokens.
    """
    targeted = types.amax(dim=1, keepdim=True)
    weights = (types * targeted + mask * (1 - targeted)).to(hidden.dtype)
    total = (hidden * weights.unsqueeze(-1)).sum(dim=1)
    return total / weights.sum(dim=1, keepdim=True)


def from_pretrained(base: str, task: Task) -> Classifier:
    """Return a classifier on a pretrained encoder. `base` is as in `load_base_encoder`, and may lack token types."""
    encoder = load_base_encoder(base, needs_types=False)
    return Classifier(encoder, encoder.config.hidden_size, len(task.labels))


def load_base_encoder(base: str, needs_types: bool = True) -> PreTrainedModel:
    """Load a pretrained encoder. `base` is a local folder in the transformers format, or a hub name.

    Attention dropout is off. On CPU it forces the slow attention kernel, for no measured gain.
    Raises ValueError if the encoder needs two token types and has fewer.
    """
    config = AutoConfig.from_pretrained(base, attention_probs_dropout_prob=0.0)
    # `pool_hidden` replaces the pooler of the BERT family.
    options = {"add_pooling_layer": False} if config.model_type in ("bert", "xlm-roberta", "roberta", "mpnet") else {}
    encoder: PreTrainedModel = AutoModel.from_pretrained(base, config=config, dtype=torch.float32, **options)
    types = token_type_embeddings(encoder)
    if types is not None and not getattr(config, MARKS_ENTITIES, False):
        with torch.no_grad():
            # Type 1 was never trained in e5, so it starts as a copy of type 0.
            types.weight[1] = types.weight[0]
    if types is None and needs_types:
        raise ValueError(
            f"the encoder {base} has fewer than two token types, and the second marks the entity; choose another base"
        )
    return encoder


def token_type_embeddings(encoder: PreTrainedModel) -> nn.Embedding | None:
    """Return the embeddings of two token types or more, or None if the encoder has fewer."""
    types: nn.Embedding | None = getattr(getattr(encoder, "embeddings", None), "token_type_embeddings", None)
    return None if types is None or types.num_embeddings < 2 else types


def require_token_types(model: Network) -> None:
    """Raise ValueError for a network that can only teach, because a graph has no place for its entity embedding."""
    if model.entity_embedding is not None:
        raise ValueError(
            "this network can only teach: its base encoder has no token types. Compute its answers with heed answers, "
            "and distil a student from a run on another base"
        )


def keep_layers(model: AnyNetwork, layers: Sequence[int]) -> AnyNetwork:
    """Remove all but these layers of the encoder, in place, and return the network."""
    all_layers = list(encoder_layers(model))
    model.encoder.encoder.layer = nn.ModuleList([all_layers[index] for index in layers])  # type: ignore[union-attr]
    model.encoder.config.num_hidden_layers = len(layers)
    return model


def encoder_layers(model: Network) -> nn.ModuleList:
    layers: nn.ModuleList = model.encoder.encoder.layer  # type: ignore[union-attr, assignment]
    return layers


def graph_weights(model: Network) -> dict[str, NDArray[np.float32]]:
    """Return all weights by the names that `models.graph.builder` reads."""
    return {name: tensor.float().cpu().numpy() for name, tensor in model.state_dict().items()}


def base_file(base: str, name: str) -> Path:
    """Return a file of a base encoder. It is fetched from the hub if the base is a hub name."""
    local = Path(base) / name
    return local if local.exists() else Path(hf_hub_download(base, name))
