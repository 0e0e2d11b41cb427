"""Nodes, constants and quantised matrices of an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.graph.names import HIGHEST, LOG_STEP, LOWEST, SCALE, STEP, WEIGHT_INT8
from models.graph.weights import ACTIVATION_LEVELS, GELU_ZERO, SIGNED_ZERO

Precision = Literal["fp32", "int8", "mixed", "fp16"]
FUSED = "com.microsoft"

WEIGHT_LEVELS = 63
"""Of a weight's sign: 7 bits."""

SIGNED_LEVELS, GELU_LEVELS, GELU_MIN = 127, 239, 0.17
"""Steps from a zero point up, and what is the least after a GELU."""


class GraphWriter:
    """The nodes and constants of one graph while it is written."""

    def __init__(self, weights: Mapping[str, NDArray[np.float32]], storage: Precision) -> None:
        self.weights, self.storage = weights, storage
        self.real = np.float16 if storage == "fp16" else np.float32
        self.real_type = TensorProto.FLOAT16 if storage == "fp16" else TensorProto.FLOAT
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._kept: dict[str, str] = {}

    def node(self, kind: str, inputs: list[str], output: str = "", domain: str = "", **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def split(self, value: str, parts: int) -> list[str]:
        """Even parts of the last axis."""
        outputs = [f"split_{len(self.nodes)}_{part}" for part in range(parts)]
        self.nodes.append(helper.make_node("Split", [value], outputs, name=outputs[0], axis=-1, num_outputs=parts))
        return outputs

    def constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self._kept:
            self.initializers.append(numpy_helper.from_array(value, name))
            self._kept[name] = name
        return name

    def integers(self, *values: int) -> str:
        return self.constant("integers_" + "_".join(map(str, values)), np.asarray(values, np.int64))

    def vector(self, name: str) -> str:
        return self.constant(name, self.weights[name].astype(self.real))

    def scalar(self, name: str, value: float) -> str:
        return self.constant(name, np.asarray(value, np.float32))

    def matrix(self, name: str, value: NDArray[np.float32]) -> str:
        """A weight matrix (inputs, outputs) to multiply in floating point."""
        if self.storage == "mixed":
            return self.node("Cast", [self.constant(name, value.astype(np.float16))], to=TensorProto.FLOAT)
        return self.constant(name, value.astype(self.real))

    def linear(self, name: str, hidden: str, zero: int = SIGNED_ZERO) -> str:
        """`hidden` times the transposed weight, with the bias."""
        bias = self.vector(f"{name}.bias")
        return self.product(name, self.weights[f"{name}.weight"].T, bias, hidden, zero)

    def product(self, name: str, value: NDArray[np.float32], bias: str, hidden: str, zero: int) -> str:
        """`hidden` (batch, length, inputs) times `value` (inputs, outputs) plus the bias, by the storage.

        `name` is that of the weight, or of the first of several that read the same input.
        """
        if self.storage != "int8":
            bounded, weight = self.bounded(name, value, hidden, zero)
            return self.node("Add", [self.node("MatMul", [bounded, weight]), bias])
        whole, scale = quantize(value, axis=0, levels=WEIGHT_LEVELS)
        stored = self.constant(f"{name}.{WEIGHT_INT8}", whole), self.constant(f"{name}.{SCALE}", scale)
        if (log_step := self.weights.get(f"{name}.{LOG_STEP}")) is not None:
            return self.rounded(hidden, *stored, self.scalar(f"{name}.{STEP}", float(np.exp(log_step))), zero, bias)
        highest = self.gelu_peak(hidden) if zero == GELU_ZERO else self.signed_peak(hidden)
        levels = GELU_LEVELS if zero == GELU_ZERO else SIGNED_LEVELS
        step = self.scalar(f"step_{levels}", 1 / levels)
        rows = self.rounded(self.node("Div", [hidden, highest]), *stored, step, zero, "")
        return self.node("Add", [self.node("Mul", [rows, highest]), bias])

    def rounded(self, hidden: str, whole: str, scale: str, step: str, zero: int, bias: str) -> str:
        zero_point = self.constant(f"zero_{zero}", np.asarray(zero, np.uint8))
        rounded = self.node("QuantizeLinear", [hidden, step, zero_point])
        return self.node("MatMulIntegerToFloat", [rounded, whole, step, scale, zero_point, "", bias], domain=FUSED)

    def bounded(self, name: str, value: NDArray[np.float32], hidden: str, zero: int) -> tuple[str, str]:
        """Input and weight for floating point; of a network that learned steps, cut and rounded as it knows them."""
        log_step = self.weights.get(f"{name}.{LOG_STEP}")
        if log_step is None:
            return hidden, self.matrix(name, value)
        step = float(np.exp(log_step))
        bounds = [
            self.constant(f"{name}.{end}", np.asarray(step * level, self.real))
            for end, level in ((LOWEST, -zero), (HIGHEST, ACTIVATION_LEVELS - zero))
        ]
        whole, scale = quantize(value, axis=0, levels=WEIGHT_LEVELS)
        return self.node("Clip", [hidden, *bounds]), self.matrix(name, whole * scale)

    def signed_peak(self, hidden: str) -> str:
        """Each token's largest magnitude."""
        highest = self.node("ReduceMax", [self.node("Abs", [hidden]), self.integers(2)], keepdims=1)
        return self.node("Max", [highest, self.scalar("least", 1e-12)])

    def gelu_peak(self, hidden: str) -> str:
        """The same after a GELU: each token's maximum, since nothing is far below zero."""
        highest = self.node("ReduceMax", [hidden, self.integers(2)], keepdims=1)
        return self.node("Max", [highest, self.scalar("gelu_least", GELU_LEVELS * GELU_MIN / GELU_ZERO)])


def quantize(value: NDArray[np.float32], axis: int, levels: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric: `whole * scale` is near `value`; one scale for each slice across `axis`, which is reduced."""
    scale = np.maximum(np.abs(value).max(axis=axis), 1e-12) / levels
    whole = np.rint(value / np.expand_dims(scale, axis)).clip(-levels, levels)
    return whole.astype(np.int8), scale.astype(np.float32)
