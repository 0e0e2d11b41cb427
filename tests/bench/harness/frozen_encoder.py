"""A network whose lower layers are frozen, so that each text passes through them only once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.networks.encoder import encoder_layers
from models.networks.intent import IntentNetwork

TRAINED_LAYERS = 2
"""The number of trained layers. In the published results, only the last layer is trained (Zhang et al. 2021)."""

StateCache = dict[bytes, Tensor]
"""Hidden states (tokens, width) after the frozen layers, by the ids and types of a text."""


class UpperNetwork(IntentNetwork):
    """An intent network with frozen lower layers. Networks with the same encoder may share `cache`."""

    def __init__(self, encoder: PreTrainedModel, width: int, labels: Mapping[str, int], cache: StateCache) -> None:
        super().__init__(encoder, width, labels)
        self._cache = cache
        layers = list(encoder_layers(self))
        self._frozen_layers, self._trained_layers = layers[:-TRAINED_LAYERS], layers[-TRAINED_LAYERS:]
        embeddings: nn.Module = encoder.embeddings  # type: ignore[assignment]
        # In a list, so that torch does not register them twice.
        self._frozen_modules = [embeddings, *self._frozen_layers]
        for module in self._frozen_modules:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> UpperNetwork:
        super().train(mode)
        for module in self._frozen_modules:  # no dropout, because their states are cached
            module.eval()
        return self

    def states(self, ids: Tensor, mask: Tensor, types: Tensor) -> tuple[Tensor, ...]:
        """Return the states of the last layer only, (batch, length, width)."""
        keys = [
            torch.stack([values[: int(count)] for values in row]).numpy().tobytes()
            for *row, count in zip(ids, types, mask.sum(dim=1), strict=True)
        ]
        missing = [row for row, key in enumerate(keys) if key not in self._cache]
        if missing:
            with torch.no_grad():
                frozen = self._frozen_modules[0](input_ids=ids[missing], token_type_ids=types[missing])
                frozen = run_layers(self._frozen_layers, frozen, mask[missing])
            for row, states in zip(missing, frozen, strict=True):
                self._cache[keys[row]] = states[: int(mask[row].sum())].clone()
        hidden = nn.utils.rnn.pad_sequence([self._cache[key] for key in keys], batch_first=True)
        return (run_layers(self._trained_layers, hidden, mask),)


def run_layers(layers: list[nn.Module], hidden: Tensor, mask: Tensor) -> Tensor:
    bias = (1.0 - mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
    for layer in layers:
        hidden = layer(hidden, bias)
    return hidden
