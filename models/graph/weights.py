"""The weights of a graph of `models.graph.builder`, dequantised to fp32 under their names in training.

With them predictions and explanations can be computed without rounding activations. Learned clipping ranges of inputs
are preserved. Needs numpy only. Knows how `models.graph.builder` names its constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.graph.names import (
    HEAD_WEIGHT,
    HIGHEST,
    LOG_STEP,
    LOWEST,
    SCALE,
    STEP,
    WEIGHT_INT8,
    WORDS_FP32,
    WORDS_INT8,
    WORDS_SCALE,
    find_layers,
)
from models.graph.protobuf import find_attributes, read_constants, read_graph

ACTIVATION_LEVELS = 255
"""The levels in a token's range: unsigned 8 bits, about a zero point."""

SIGNED_ZERO, GELU_ZERO = 128, 16
"""The zero points. After a GELU no value is below -0.17, so most of the 255 levels are positive."""


@dataclass(frozen=True, slots=True)
class GraphWeights:
    """The `tensors` of a CPU graph by name, as stored, and two attributes of its operators."""

    tensors: dict[str, NDArray[Any]]
    heads: int
    epsilon: float


def read_graph_weights(path: Path) -> GraphWeights:
    """Return the weights of a graph; word embeddings in a separate file are memory-mapped.

    Raises:
        ValueError: The graph's attention is not the standard operator, as in a graph for GPUs.
    """
    graph = read_graph(path)
    heads = next(find_attributes(graph, "Attention", "q_num_heads"), None)
    epsilon = next(find_attributes(graph, "LayerNormalization", "epsilon"), None)
    if heads is None or epsilon is None:
        raise ValueError(
            f"{path.name} has no Attention with q_num_heads: it is for GPUs or from an older export; export it again"
        )
    return GraphWeights(read_constants(graph, path.parent), int(heads), float(epsilon))


def dequantize(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Return all weights but the word embeddings, under the names of transformers' BERT."""
    unquantized = (".bias", "LayerNorm.weight", "_embeddings.weight")
    weights = {name: as_float32(value) for name, value in tensors.items() if name.endswith(unquantized)}
    if HEAD_WEIGHT in tensors:
        weights[HEAD_WEIGHT] = as_float32(tensors[HEAD_WEIGHT]).T
    for layer in find_layers(tensors):
        matrices = np.split(dequantize_matrix(tensors, layer.parts[0]), 3, axis=1)
        biases = np.split(weights.pop(f"{layer.attention}.bias"), 3)
        for name, weight, bias in zip(layer.parts, matrices, biases, strict=True):
            weights |= {f"{name}.weight": weight.T, f"{name}.bias": bias}
        rest = (layer.attention_output, layer.intermediate, layer.output)
        weights |= {f"{name}.weight": dequantize_matrix(tensors, name).T for name in rest}
        for name in (layer.parts[0], *rest):
            if step := input_step(tensors, name):
                weights[f"{name}.{LOG_STEP}"] = np.log(step)
    return weights


def word_embeddings(
    tensors: dict[str, NDArray[Any]], ids: NDArray[np.int64] | slice = slice(None)
) -> NDArray[np.float32]:
    """Return the embeddings of token ids, (..., width)."""
    if WORDS_FP32 in tensors:
        return as_float32(tensors[WORDS_FP32][ids])
    return np.asarray(as_float32(tensors[WORDS_INT8][ids]) * tensors[WORDS_SCALE][ids])


def dequantize_matrix(tensors: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    """Return the weight of a linear layer, (inputs, outputs)."""
    if name in tensors:
        return as_float32(tensors[name])
    return as_float32(tensors[f"{name}.{WEIGHT_INT8}"]) * as_float32(tensors[f"{name}.{SCALE}"])


def input_step(tensors: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32] | None:
    """Return the step that rounds a linear layer's input, or None if the network learned no steps.

    A graph with weights of more bits clips the input instead. The step is then the one of training.
    """
    if f"{name}.{STEP}" in tensors:
        return as_float32(tensors[f"{name}.{STEP}"])
    if f"{name}.{LOWEST}" in tensors:
        lowest, highest = (as_float32(tensors[f"{name}.{end}"]) for end in (LOWEST, HIGHEST))
        return (highest - lowest) / np.float32(ACTIVATION_LEVELS)
    return None


def as_float32(value: NDArray[Any]) -> NDArray[np.float32]:
    return value.astype(np.float32)
