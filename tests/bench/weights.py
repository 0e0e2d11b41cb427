"""The network behind a bundle's graph, in torch: no training folder is needed to run a bundle with another runtime.

Reads the graph that `models.graph` writes in `fp16`; knows its names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from models.network import WORD_EMBEDDINGS, Classifier
from models.stored import WORDS

Stored = dict[str, NDArray[np.generic]]
_LAYER = "encoder.encoder.layer"
_PARTS = ("query", "key", "value")
_BOUNDS = (".lowest", ".highest")


@dataclass(frozen=True, slots=True)
class Shape:
    layers: int
    width: int
    inner: int
    heads: int

    def __str__(self) -> str:
        return f"{self.layers} layers of width {self.width}, inner width {self.inner}, {self.heads} heads"


def network_of(path: Path) -> tuple[Classifier, Shape]:
    """The weights as they are stored, in fp32."""
    graph = onnx.load(str(path)).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    attentions = [node for node in graph.node if node.op_type == "Attention"]
    (heads,) = {one.i for node in attentions for one in node.attribute if one.name == "num_heads"}
    epsilon = next(one.f for node in graph.node for one in node.attribute if one.name == "epsilon")
    weights = _weights(stored)
    pieces, width = weights[WORD_EMBEDDINGS].shape
    inner = weights[f"{_LAYER}.0.intermediate.dense.weight"].shape[0]
    shape = Shape(len(attentions), width, inner, heads)
    config = BertConfig(
        vocab_size=pieces,
        hidden_size=width,
        num_hidden_layers=shape.layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=len(weights["encoder.embeddings.position_embeddings.weight"]),
        layer_norm_eps=epsilon,
    )
    network = Classifier(BertModel(config, add_pooling_layer=False), width, len(weights["head.bias"]))
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    _bound(network, stored)
    return network.eval(), shape


def _weights(stored: Stored) -> dict[str, NDArray[np.float32]]:
    """By the names of transformers: matrices transposed, the three of attention apart, words multiplied out."""
    found = {WORD_EMBEDDINGS: stored[WORDS].astype(np.float32) * stored["words.scale"].astype(np.float32)}
    for name, value in stored.items():
        whole = value.astype(np.float32)
        attention, _, last = name.partition(".attention.self.")
        if last in ("query", "bias"):
            kind = "weight" if last == "query" else "bias"
            for part, piece in zip(_PARTS, np.split(whole, 3, axis=-1), strict=True):
                found[f"{attention}.attention.self.{part}.{kind}"] = np.ascontiguousarray(piece.T)
        elif name == "head.weight":
            found[name] = np.ascontiguousarray(whole.T)
        elif name.startswith(_LAYER) and whole.ndim == 2:
            found[f"{name}.weight"] = np.ascontiguousarray(whole.T)
        elif name.startswith(("encoder.", "head.")) and not name.endswith(_BOUNDS):
            found[name] = whole
    return found


def _bound(network: Classifier, stored: Stored) -> None:
    """Cut the inputs of linear layers where the graph does: a network trained to compute in 8 bits knows no others."""
    for name in stored:
        if name.endswith(_BOUNDS[0]):
            own = name.removesuffix(_BOUNDS[0])
            lowest, highest = (float(stored[own + end]) for end in _BOUNDS)
            for part in _PARTS if own.endswith("query") else [""]:
                layer = network.get_submodule(own.removesuffix("query") + part if part else own)
                layer.register_forward_pre_hook(partial(_cut, lowest, highest))


def _cut(lowest: float, highest: float, _: nn.Module, given: tuple[Tensor]) -> Tensor:
    return given[0].clamp(lowest, highest)
