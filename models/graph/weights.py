"""What a graph of `models.graph.builder` stores, read back in fp32 under the names that its weights had in training.

What answers and explanations would be without rounding on the way can be worked out of it. A network that learned where
inputs are cut keeps being cut there. Needs numpy only; knows how `models.graph.builder` names what it stores.
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
"""Of a token's range: unsigned 8 bits, about a zero point."""

SIGNED_ZERO, GELU_ZERO = 128, 16
"""The zero points: after a GELU nothing is below -0.17, so that most of the 255 steps go to the positive side."""


@dataclass(frozen=True, slots=True)
class GraphWeights:
    """A CPU graph's `tensors` by name, as they are stored, and two figures of its operators."""

    tensors: dict[str, NDArray[Any]]
    heads: int
    epsilon: float


def read_graph_weights(path: Path) -> GraphWeights:
    """Word embeddings that lie in a file of their own stay there, mapped.

    Raises ValueError for a graph whose attention is not in the standard operator, such as that for GPUs.
    """
    graph = read_graph(path)
    heads = next(find_attributes(graph, "Attention", "q_num_heads"), None)
    epsilon = next(find_attributes(graph, "LayerNormalization", "epsilon"), None)
    if heads is None or epsilon is None:
        raise ValueError(f"{path.name} has no Attention with q_num_heads: it is for GPUs, or an older export wrote it")
    return GraphWeights(read_constants(graph, path.parent), int(heads), float(epsilon))


def dequantize(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """All but the word embeddings, under the names of transformers' BERT."""
    found = {name: as_float32(value) for name, value in tensors.items() if name.endswith((".bias", "LayerNorm.weight"))}
    found |= {name: as_float32(value) for name, value in tensors.items() if name.endswith("_embeddings.weight")}
    if HEAD_WEIGHT in tensors:
        found[HEAD_WEIGHT] = as_float32(tensors[HEAD_WEIGHT]).T
    for layer in find_layers(tensors):
        matrices = np.split(matrix(tensors, layer.parts[0]), 3, axis=1)
        biases = np.split(found.pop(f"{layer.attention}.bias"), 3)
        for part, weight, bias in zip(layer.parts, matrices, biases, strict=True):
            found |= {f"{part}.weight": weight.T, f"{part}.bias": bias}
        rest = (layer.attention_output, layer.intermediate, layer.output)
        found |= {f"{name}.weight": matrix(tensors, name).T for name in rest}
        for name in (layer.parts[0], *rest):
            if step := input_step(tensors, name):
                found[f"{name}.{LOG_STEP}"] = np.log(step)
    return found


def word_embeddings(
    tensors: dict[str, NDArray[Any]], ids: NDArray[np.int64] | slice = slice(None)
) -> NDArray[np.float32]:
    """The embeddings of these pieces, (..., width)."""
    if WORDS_FP32 in tensors:
        return as_float32(tensors[WORDS_FP32][ids])
    return np.asarray(as_float32(tensors[WORDS_INT8][ids]) * tensors[WORDS_SCALE][ids])


def matrix(tensors: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    """(inputs, outputs)."""
    if name in tensors:
        return as_float32(tensors[name])
    return as_float32(tensors[f"{name}.{WEIGHT_INT8}"]) * as_float32(tensors[f"{name}.{SCALE}"])


def input_step(tensors: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32] | None:
    """By which a linear layer's input is rounded, or was while the weights that are stored in more bits were learnt."""
    if f"{name}.{STEP}" in tensors:
        return as_float32(tensors[f"{name}.{STEP}"])
    if f"{name}.{LOWEST}" in tensors:
        lowest, highest = (as_float32(tensors[f"{name}.{end}"]) for end in (LOWEST, HIGHEST))
        return (highest - lowest) / np.float32(ACTIVATION_LEVELS)
    return None


def as_float32(value: NDArray[Any]) -> NDArray[np.float32]:
    return value.astype(np.float32)
