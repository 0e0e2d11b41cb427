"""The writer of an ONNX graph: nodes, constants and quantised matrices."""

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
CONTRIB_DOMAIN = "com.microsoft"
"""The domain of ONNX Runtime's contrib operators, which are fused."""

WEIGHT_LEVELS = 63
"""The levels on each side of zero for a weight: 7 bits."""

SIGNED_LEVELS, GELU_LEVELS, GELU_MIN = 127, 239, 0.17
"""Steps above each zero point, and the magnitude of the minimum of a GELU."""


class GraphWriter:
    """The nodes and constants of a graph under construction. Methods that add a value return its name."""

    def __init__(self, weights: Mapping[str, NDArray[np.float32]], precision: Precision) -> None:
        self.weights, self.precision = weights, precision
        self.float_type = np.float16 if precision == "fp16" else np.float32
        self.onnx_float_type = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._constants: set[str] = set()

    def add_node(self, operator: str, inputs: list[str], output: str = "", domain: str = "", **attributes: Any) -> str:
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def add_split(self, value: str, parts: int) -> list[str]:
        """Split the last axis evenly."""
        outputs = [f"split_{len(self.nodes)}_{index}" for index in range(parts)]
        self.nodes.append(helper.make_node("Split", [value], outputs, name=outputs[0], axis=-1, num_outputs=parts))
        return outputs

    def add_constant(self, name: str, value: NDArray[Any]) -> str:
        """Add a constant, unless the graph has it already."""
        if name not in self._constants:
            self.initializers.append(numpy_helper.from_array(value, name))
            self._constants.add(name)
        return name

    def add_integers(self, *values: int) -> str:
        return self.add_constant("integers_" + "_".join(map(str, values)), np.asarray(values, np.int64))

    def add_vector(self, name: str) -> str:
        return self.add_constant(name, self.weights[name].astype(self.float_type))

    def add_scalar(self, name: str, value: float) -> str:
        return self.add_constant(name, np.asarray(value, np.float32))

    def add_matrix(self, name: str, value: NDArray[np.float32]) -> str:
        """Add a weight matrix (inputs, outputs) for a product in floating point."""
        if self.precision == "mixed":
            return self.add_node("Cast", [self.add_constant(name, value.astype(np.float16))], to=TensorProto.FLOAT)
        return self.add_constant(name, value.astype(self.float_type))

    def add_linear(self, name: str, hidden: str, zero: int = SIGNED_ZERO) -> str:
        """Add the product of `hidden` and the transposed weight, plus the bias."""
        bias = self.add_vector(f"{name}.bias")
        return self.add_product(name, self.weights[f"{name}.weight"].T, bias, hidden, zero)

    def add_product(self, name: str, value: NDArray[np.float32], bias: str, hidden: str, zero: int) -> str:
        """Add `hidden` (batch, length, inputs) times `value` (inputs, outputs) plus the bias, by the precision.

        `name` is the name of the weight, or of the first of several weights with the same input.
        """
        if self.precision != "int8":
            clipped, weight = self.add_clipped_inputs(name, value, hidden, zero)
            return self.add_node("Add", [self.add_node("MatMul", [clipped, weight]), bias])
        quantized, scale = quantize(value, axis=0, levels=WEIGHT_LEVELS)
        stored = self.add_constant(f"{name}.{WEIGHT_INT8}", quantized), self.add_constant(f"{name}.{SCALE}", scale)
        if (log_step := self.weights.get(f"{name}.{LOG_STEP}")) is not None:
            return self.add_int8_product(
                hidden, *stored, self.add_scalar(f"{name}.{STEP}", float(np.exp(log_step))), zero, bias
            )
        highest = self.add_gelu_peak(hidden) if zero == GELU_ZERO else self.add_signed_peak(hidden)
        levels = GELU_LEVELS if zero == GELU_ZERO else SIGNED_LEVELS
        step = self.add_scalar(f"step_{levels}", 1 / levels)
        rows = self.add_int8_product(self.add_node("Div", [hidden, highest]), *stored, step, zero, "")
        return self.add_node("Add", [self.add_node("Mul", [rows, highest]), bias])

    def add_int8_product(self, hidden: str, quantized: str, scale: str, step: str, zero: int, bias: str) -> str:
        """Add the product of `hidden`, rounded to 8 bits by `step`, and the int8 weight `quantized`."""
        zero_point = self.add_constant(f"zero_{zero}", np.asarray(zero, np.uint8))
        rounded = self.add_node("QuantizeLinear", [hidden, step, zero_point])
        return self.add_node(
            "MatMulIntegerToFloat", [rounded, quantized, step, scale, zero_point, "", bias], domain=CONTRIB_DOMAIN
        )

    def add_clipped_inputs(self, name: str, value: NDArray[np.float32], hidden: str, zero: int) -> tuple[str, str]:
        """Add input and weight of a product in floating point.

        In a network that learned steps, the input is clipped and the weight rounded as in training.
        """
        log_step = self.weights.get(f"{name}.{LOG_STEP}")
        if log_step is None:
            return hidden, self.add_matrix(name, value)
        step = float(np.exp(log_step))
        limits = [
            self.add_constant(f"{name}.{end}", np.asarray(step * level, self.float_type))
            for end, level in ((LOWEST, -zero), (HIGHEST, ACTIVATION_LEVELS - zero))
        ]
        quantized, scale = quantize(value, axis=0, levels=WEIGHT_LEVELS)
        return self.add_node("Clip", [hidden, *limits]), self.add_matrix(name, quantized * scale)

    def add_signed_peak(self, hidden: str) -> str:
        """Add the largest magnitude of each token."""
        highest = self.add_node("ReduceMax", [self.add_node("Abs", [hidden]), self.add_integers(2)], keepdims=1)
        return self.add_node("Max", [highest, self.add_scalar("least", 1e-12)])

    def add_gelu_peak(self, hidden: str) -> str:
        """Add the maximum of each token after a GELU, where no value is far below zero."""
        highest = self.add_node("ReduceMax", [hidden, self.add_integers(2)], keepdims=1)
        return self.add_node("Max", [highest, self.add_scalar("gelu_least", GELU_LEVELS * GELU_MIN / GELU_ZERO)])


def quantize(value: NDArray[np.float32], axis: int, levels: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return int8 values and scales, so that `quantized * scale` is near `value` (symmetric quantisation).

    There is a scale for each slice across `axis`, which is reduced.
    """
    scale = np.maximum(np.abs(value).max(axis=axis), 1e-12) / levels
    quantized = np.rint(value / np.expand_dims(scale, axis)).clip(-levels, levels)
    return quantized.astype(np.int8), scale.astype(np.float32)
