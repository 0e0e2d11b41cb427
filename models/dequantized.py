"""The shipped graph's own weights in fp32: what its answers and explanations would be without rounding on the way.

The numbers that a graph stores are read back under the names they had in training, and the plain graph is written from
them; a network that learned where inputs are cut keeps being cut there. Needs the onnx package. Knows how
`models.graph` names what it stores.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from models.graph import ACTIVATION_LEVELS, LOG_STEP, WORD_ROWS, WORDS, build

ATTENTION = "encoder.encoder.layer.{layer}.attention.self"


def dequantized(graph: Path) -> onnx.ModelProto:
    """A graph written as `int8`, `mixed` or `fp32`, all of it in fp32; raises ValueError for any other."""
    model = onnx.load(str(graph))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    heads = attribute(model, "Attention", "q_num_heads")
    return build(weights_of(stored), int(heads), float(attribute(model, "LayerNormalization", "epsilon")), "fp32")


def weights_of(stored: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """A graph's constants to weights as transformers' BERT names them."""
    found = {name: real(value) for name, value in stored.items() if name.endswith((".bias", "LayerNorm.weight"))}
    found |= {name: real(value) for name, value in stored.items() if name.endswith("_embeddings.weight")}
    found[WORD_ROWS] = real(stored["words"]) if "words" in stored else real(stored[WORDS]) * stored["words.scale"]
    if "head.weight" in stored:
        found["head.weight"] = real(stored["head.weight"]).T
    layer = 0
    while f"{ATTENTION.format(layer=layer)}.bias" in stored:
        own = ATTENTION.format(layer=layer)
        parts = [f"{own}.{part}" for part in ("query", "key", "value")]
        matrices = np.split(matrix(stored, parts[0]), 3, axis=1)
        biases = np.split(found.pop(f"{own}.bias"), 3)
        for part, weight, bias in zip(parts, matrices, biases, strict=True):
            found |= {f"{part}.weight": weight.T, f"{part}.bias": bias}
        rest = [own.replace(".self", ".output.dense")]
        rest += [own.replace("attention.self", dense) for dense in ("intermediate.dense", "output.dense")]
        found |= {f"{name}.weight": matrix(stored, name).T for name in rest}
        found |= {f"{name}.{LOG_STEP}": np.log(step) for name in (parts[0], *rest) if (step := step_of(stored, name))}
        layer += 1
    return found


def matrix(stored: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    """(inputs, outputs)."""
    if name in stored:
        return real(stored[name])
    return real(stored[f"{name}.q"]) * real(stored[f"{name}.scale"])


def step_of(stored: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32] | None:
    """By which a linear layer's input is rounded, or was while the weights that are stored in more bits were learnt."""
    if f"{name}.step" in stored:
        return real(stored[f"{name}.step"])
    if f"{name}.lowest" in stored:
        return (real(stored[f"{name}.highest"]) - real(stored[f"{name}.lowest"])) / np.float32(ACTIVATION_LEVELS)
    return None


def real(value: NDArray[Any]) -> NDArray[np.float32]:
    return value.astype(np.float32)


def attribute(model: onnx.ModelProto, operator: str, name: str) -> Any:
    for node in model.graph.node:
        for own in node.attribute:
            if node.op_type == operator and own.name == name:
                return onnx.helper.get_attribute_value(own)
    raise ValueError(f"the graph has no {operator} with {name}: it is for GPUs, or an older export wrote it")
