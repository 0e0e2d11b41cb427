"""The network behind a bundle's graph, in torch: no training folder is needed to run a bundle with another runtime."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import BertConfig, BertModel

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

_LAYER = "encoder.encoder.layer"
_AFTER_GELU = ".output.dense"
_PARTS = ("query", "key", "value")


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int
    width: int
    inner: int
    heads: int

    def __str__(self) -> str:
        return f"{self.layers} layers of width {self.width}, inner width {self.inner}, {self.heads} heads"


def network_of(graph: Path) -> tuple[Classifier, Shape]:
    """The weights as they are stored, in fp32; raises ValueError as `stored_in`."""
    stored = read_graph_weights(graph)
    weights = dequantize(stored.tensors) | {WORD_EMBEDDINGS: word_embeddings(stored.tensors)}
    steps = {name: float(np.exp(weights.pop(name))) for name in list(weights) if name.endswith(LOG_STEP)}
    pieces, width = weights[WORD_EMBEDDINGS].shape
    inner = weights[f"{_LAYER}.0.intermediate.dense.weight"].shape[0]
    layers = sum(name.endswith("intermediate.dense.weight") for name in weights)
    config = BertConfig(
        vocab_size=pieces,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=stored.heads,
        intermediate_size=inner,
        max_position_embeddings=len(weights["encoder.embeddings.position_embeddings.weight"]),
        layer_norm_eps=stored.epsilon,
    )
    network = Classifier(BertModel(config, add_pooling_layer=False), width, len(weights["head.bias"]))
    network.load_state_dict({name: _tensor(value) for name, value in weights.items()})
    for name, step in steps.items():
        _cut(network, name.removesuffix(f".{LOG_STEP}"), step)
    return network.eval(), Shape(layers, width, inner, stored.heads)


def _tensor(value: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(value))


def _cut(network: Classifier, name: str, step: float) -> None:
    """Cut a linear layer's inputs where the graph does: a network trained to compute in 8 bits knows no others."""
    zero = GELU_ZERO if name.endswith(_AFTER_GELU) and "attention" not in name else SIGNED_ZERO
    lowest, highest = -zero * step, (ACTIVATION_LEVELS - zero) * step
    own = name.removesuffix("query")
    for part in _PARTS if own != name else [""]:
        network.get_submodule(own + part).register_forward_pre_hook(partial(_clamp, lowest, highest))


def _clamp(lowest: float, highest: float, _: nn.Module, given: tuple[Tensor]) -> Tensor:
    return given[0].clamp(lowest, highest)
