"""A network of which only the upper layers learn, so that a text goes through the lower ones once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.networks.encoder import encoder_layers
from models.networks.intent import IntentNetwork

LEARNING = 2
"""Layers that learn. The published figures are of encoders of which the last alone does (Zhang et al. 2021)."""

Known = dict[bytes, Tensor]
"""What the lower layers make of a text, (tokens, width), by its ids and types."""


class UpperNetwork(IntentNetwork):
    """`known` may be shared between networks that begin with the same encoder."""

    def __init__(self, encoder: PreTrainedModel, width: int, labels: Mapping[str, int], known: Known) -> None:
        super().__init__(encoder, width, labels)
        self._known = known
        every = list(encoder_layers(self))
        self._below, self._above = every[:-LEARNING], every[-LEARNING:]
        embeddings: nn.Module = encoder.embeddings  # type: ignore[assignment]
        self._still = [embeddings, *self._below]  # in a list, so that their weights are not there twice
        for module in self._still:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> UpperNetwork:
        super().train(mode)
        for module in self._still:  # their states are kept: no dropout
            module.eval()
        return self

    def states(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, ...]:
        """Of the last layer alone, (batch, length, width)."""
        keys = [
            torch.stack([own[: int(count)] for own in row]).numpy().tobytes()
            for *row, count in zip(ids, types, mask.sum(dim=1), strict=True)
        ]
        fresh = [number for number, key in enumerate(keys) if key not in self._known]
        if fresh:
            with torch.no_grad():
                below = self._still[0](input_ids=ids[fresh], token_type_ids=types[fresh])
                below = through(self._below, below, mask[fresh])
            for number, own in zip(fresh, below, strict=True):
                self._known[keys[number]] = own[: int(mask[number].sum())].clone()
        hidden = nn.utils.rnn.pad_sequence([self._known[key] for key in keys], batch_first=True)
        return (through(self._above, hidden, mask),)


def through(layers: list[nn.Module], hidden: Tensor, mask: Tensor) -> Tensor:
    unread = (1.0 - mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
    for layer in layers:
        hidden = layer(hidden, unread)
    return hidden
