"""The network behind a bundle's graph, in torch and in fp32. It needs no training folder.

The graph stores quantised weights. They are dequantised, so the network is the one that serves, within rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel

from models.graph.names import LOG_STEP, WORD_EMBEDDINGS
from models.graph.weights import (
    ACTIVATION_LEVELS,
    GELU_ZERO,
    SIGNED_ZERO,
    dequantize,
    read_graph_weights,
    word_embeddings,
)
from models.networks.encoder import Classifier

_ENCODER = "encoder."
_LAYER = f"{_ENCODER}encoder.layer"
_AFTER_GELU = ".output.dense"
_PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """The size of an encoder."""

    layers: int
    width: int
    inner: int
    heads: int

    def __str__(self) -> str:
        return f"{self.layers} layers of width {self.width}, inner width {self.inner}, {self.heads} heads"


@dataclass(frozen=True, slots=True)
class _StoredNetwork:
    """A graph's weights by their names in training, and the step of each linear layer that learned to round."""

    weights: dict[str, NDArray[np.float32]]
    steps: dict[str, float]
    heads: int
    epsilon: float

    @property
    def shape(self) -> NetworkShape:
        width = self.weights[WORD_EMBEDDINGS].shape[1]
        inner = self.weights[f"{_LAYER}.0.intermediate.dense.weight"].shape[0]
        layers = sum(name.endswith("intermediate.dense.weight") for name in self.weights)
        return NetworkShape(layers, width, inner, self.heads)


def load_graph_classifier(graph: Path) -> tuple[Classifier, NetworkShape]:
    """Return the classifier of a graph, which clips its inputs where the graph does.

    Raises ValueError as `read_graph_weights` does.
    """
    stored = _read(graph)
    encoder = BertModel(_config(stored), add_pooling_layer=False)
    network = Classifier(encoder, stored.shape.width, len(stored.weights["head.bias"]))
    network.load_state_dict(_tensors(stored.weights))
    for name, step in stored.steps.items():
        _clip_inputs(network, name, step)
    return network.eval(), stored.shape


def load_graph_encoder(graph: Path, pad_id: int) -> tuple[PreTrainedModel, NetworkShape]:
    """Return a graph's encoder as plain BERT, without clipping and without what follows it.

    Raises ValueError as `read_graph_weights` does.
    """
    stored = _read(graph)
    encoder: PreTrainedModel = BertModel(_config(stored, pad_id), add_pooling_layer=False)
    names = {name: name.removeprefix(_ENCODER) for name in stored.weights if name.startswith(_ENCODER)}
    encoder.load_state_dict(_tensors({short: stored.weights[name] for name, short in names.items()}))
    return nn.Module.eval(encoder), stored.shape


def _read(graph: Path) -> _StoredNetwork:
    stored = read_graph_weights(graph)
    weights = dequantize(stored.tensors) | {WORD_EMBEDDINGS: word_embeddings(stored.tensors)}
    names = [name for name in weights if name.endswith(f".{LOG_STEP}")]
    steps = {name.removesuffix(f".{LOG_STEP}"): float(np.exp(weights.pop(name))) for name in names}
    return _StoredNetwork(weights, steps, stored.heads, stored.epsilon)


def _config(stored: _StoredNetwork, pad_id: int = 0) -> BertConfig:
    return BertConfig(
        vocab_size=len(stored.weights[WORD_EMBEDDINGS]),
        hidden_size=stored.shape.width,
        num_hidden_layers=stored.shape.layers,
        num_attention_heads=stored.heads,
        intermediate_size=stored.shape.inner,
        max_position_embeddings=len(stored.weights["encoder.embeddings.position_embeddings.weight"]),
        layer_norm_eps=stored.epsilon,
        pad_token_id=pad_id,
    )


def _tensors(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in weights.items()}


def _clip_inputs(network: Classifier, name: str, step: float) -> None:
    """Clip a linear layer's inputs where the graph does: a network trained to compute in 8 bits knows no others."""
    zero = GELU_ZERO if name.endswith(_AFTER_GELU) and "attention" not in name else SIGNED_ZERO
    lowest, highest = -zero * step, (ACTIVATION_LEVELS - zero) * step
    parent = name.removesuffix("query")
    for projection in _PROJECTIONS if parent != name else [""]:
        network.get_submodule(parent + projection).register_forward_pre_hook(partial(_clamp, lowest, highest))


def _clamp(lowest: float, highest: float, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0].clamp(lowest, highest)
