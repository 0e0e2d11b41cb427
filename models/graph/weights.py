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
    PLAIN_WORDS,
    SCALE,
    STEP,
    WHOLE,
    WORDS,
    WORDS_SCALE,
    layers_of,
)
from models.graph.protobuf import attributes, constants, graph_of

ACTIVATION_LEVELS = 255
"""Of a token's range: unsigned 8 bits, about a zero point."""

SIGNED_ZERO, GELU_ZERO = 128, 16
"""The zero points: after a GELU nothing is below -0.17, so that most of the 255 steps go to the positive side."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A CPU graph's `tensors` by name, as they are stored, and two figures of its operators."""

    tensors: dict[str, NDArray[Any]]
    heads: int
    epsilon: float


def stored_in(path: Path) -> Stored:
    """Word embeddings that lie in a file of their own stay there, mapped.

    Raises ValueError for a graph whose attention is not in the standard operator, such as that for GPUs.
    """
    graph = graph_of(path)
    heads = next(attributes(graph, "Attention", "q_num_heads"), None)
    epsilon = next(attributes(graph, "LayerNormalization", "epsilon"), None)
    if heads is None or epsilon is None:
        raise ValueError(f"{path.name} has no Attention with q_num_heads: it is for GPUs, or an older export wrote it")
    return Stored(constants(graph, path.parent), int(heads), float(epsilon))


def weights_of(tensors: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """All but the word embeddings, under the names of transformers' BERT."""
    found = {name: real(value) for name, value in tensors.items() if name.endswith((".bias", "LayerNorm.weight"))}
    found |= {name: real(value) for name, value in tensors.items() if name.endswith("_embeddings.weight")}
    if HEAD_WEIGHT in tensors:
        found[HEAD_WEIGHT] = real(tensors[HEAD_WEIGHT]).T
    for layer in layers_of(tensors):
        matrices = np.split(matrix(tensors, layer.parts[0]), 3, axis=1)
        biases = np.split(found.pop(f"{layer.attention}.bias"), 3)
        for part, weight, bias in zip(layer.parts, matrices, biases, strict=True):
            found |= {f"{part}.weight": weight.T, f"{part}.bias": bias}
        rest = (layer.mixing, layer.intermediate, layer.output)
        found |= {f"{name}.weight": matrix(tensors, name).T for name in rest}
        for name in (layer.parts[0], *rest):
            if step := step_of(tensors, name):
                found[f"{name}.{LOG_STEP}"] = np.log(step)
    return found


def word_rows(tensors: dict[str, NDArray[Any]], ids: NDArray[np.int64] | slice = slice(None)) -> NDArray[np.float32]:
    """The embeddings of these pieces, (..., width)."""
    if PLAIN_WORDS in tensors:
        return real(tensors[PLAIN_WORDS][ids])
    return np.asarray(real(tensors[WORDS][ids]) * tensors[WORDS_SCALE][ids])


def matrix(tensors: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    """(inputs, outputs)."""
    if name in tensors:
        return real(tensors[name])
    return real(tensors[f"{name}.{WHOLE}"]) * real(tensors[f"{name}.{SCALE}"])


def step_of(tensors: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32] | None:
    """By which a linear layer's input is rounded, or was while the weights that are stored in more bits were learnt."""
    if f"{name}.{STEP}" in tensors:
        return real(tensors[f"{name}.{STEP}"])
    if f"{name}.{LOWEST}" in tensors:
        lowest, highest = (real(tensors[f"{name}.{end}"]) for end in (LOWEST, HIGHEST))
        return (highest - lowest) / np.float32(ACTIVATION_LEVELS)
    return None


def real(value: NDArray[Any]) -> NDArray[np.float32]:
    return value.astype(np.float32)
