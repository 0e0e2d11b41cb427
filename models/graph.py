"""The exported graph, written from the trained weights: a BERT encoder, pooling and the head in ONNX.

Written here rather than traced, so that it holds just the fused operators ONNX Runtime is fast at, on CPU and CUDA,
and the storage of each weight is chosen: `int8` multiplies in 8 bits, with a scale for each token and each output, so
that an answer never depends on its batch; `mixed` keeps the matrices in 16 bits and computes in fp32; both keep the
word embeddings in 8 bits with a scale for each row. `fp16` stores and computes in 16 bits; `fp32` is the plain graph.
Knows the weight names of transformers' BERT family, no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Storage = Literal["fp32", "int8", "mixed", "fp16"]
FUSED = "com.microsoft"
OPSET, IR_VERSION = 18, 9

EMBEDDING_LEVELS = 127
"""Of a word embedding's sign: 8 bits."""

WEIGHT_LEVELS = 63
"""Of a weight's sign: 7 bits."""

SIGNED_LEVELS = 127
"""Of a token's sign, about a zero point of 128."""

GELU_LEVELS, GELU_ZERO, GELU_LEAST = 239, 16, 0.17
"""After a GELU nothing is below -0.17, so that most of the 255 steps go to the positive side."""


def build(weights: Mapping[str, NDArray[np.float32]], heads: int, epsilon: float, storage: Storage) -> onnx.ModelProto:
    """`ids`, `mask`, `types` (batch, length) int64 to `logits` (batch, labels) fp32."""
    graph = Graph(weights, storage)
    hidden = embed(graph, epsilon)
    mask = graph.node("Cast", ["mask"], to=TensorProto.INT32)
    layer = 0
    while f"encoder.encoder.layer.{layer}.output.dense.weight" in weights:
        hidden = encoder_layer(graph, f"encoder.encoder.layer.{layer}", hidden, mask, heads, epsilon)
        layer += 1
    logits = head(graph, pool(graph, hidden))
    graph.node("Cast", [logits], output="logits", to=TensorProto.FLOAT)
    labels = weights["head.bias"].shape[0]
    shape = ["batch", "length"]
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "heed",
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("ids", "mask", "types")],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", labels])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(FUSED, 1)],
        ir_version=IR_VERSION,
        producer_name="heed",
    )


class Graph:
    """The nodes and constants of one graph while it is written."""

    def __init__(self, weights: Mapping[str, NDArray[np.float32]], storage: Storage) -> None:
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

    def scalar(self, name: str, value: float, kind: type[np.generic]) -> str:
        return self.constant(name, np.asarray(value, kind))

    def matrix(self, name: str, value: NDArray[np.float32]) -> str:
        """A weight matrix (inputs, outputs) to multiply in floating point."""
        if self.storage == "mixed":
            return self.node("Cast", [self.constant(name, value.astype(np.float16))], to=TensorProto.FLOAT)
        return self.constant(name, value.astype(self.real))

    def linear(self, name: str, hidden: str, after_gelu: bool = False) -> str:
        """`hidden` times the transposed weight, without the bias, which the next fused operator adds."""
        return self.product(f"{name}.weight", self.weights[f"{name}.weight"].T, hidden, after_gelu)

    def product(self, name: str, value: NDArray[np.float32], hidden: str, after_gelu: bool = False) -> str:
        """`hidden` (batch, length, inputs) times `value` (inputs, outputs), in 8 bits where storage is `int8`."""
        if self.storage != "int8":
            return self.node("MatMul", [hidden, self.matrix(name, value)])
        highest, step, zero = self.gelu_range(hidden) if after_gelu else self.signed_range(hidden)
        rounded = self.node("QuantizeLinear", [self.node("Div", [hidden, highest]), step, zero])
        whole, scale = quantize(value, axis=0, levels=WEIGHT_LEVELS)
        weights = [self.constant(f"{name}.q", whole), step, self.constant(f"{name}.scale", scale), zero]
        product = self.node("MatMulIntegerToFloat", [rounded, *weights], domain=FUSED)
        return self.node("Mul", [product, highest])

    def signed_range(self, hidden: str) -> tuple[str, str, str]:
        """Each token's largest magnitude, the step as a share of it, and the zero point."""
        highest = self.node("ReduceMax", [self.node("Abs", [hidden]), self.integers(2)], keepdims=1)
        least = self.node("Max", [highest, self.scalar("least", 1e-12, np.float32)])
        return (
            least,
            self.scalar("signed_step", 1 / SIGNED_LEVELS, np.float32),
            self.scalar("signed_zero", 128, np.uint8),
        )

    def gelu_range(self, hidden: str) -> tuple[str, str, str]:
        """The same after a GELU: each token's maximum, since nothing is far below zero."""
        highest = self.node("ReduceMax", [hidden, self.integers(2)], keepdims=1)
        bound = self.scalar("gelu_least", GELU_LEVELS * GELU_LEAST / GELU_ZERO, np.float32)
        step, zero = (
            self.scalar("gelu_step", 1 / GELU_LEVELS, np.float32),
            self.scalar("gelu_zero", GELU_ZERO, np.uint8),
        )
        return self.node("Max", [highest, bound]), step, zero


def quantize(value: NDArray[np.float32], axis: int, levels: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric: `whole * scale` is near `value`; one scale for each slice across `axis`, which is reduced."""
    scale = np.maximum(np.abs(value).max(axis=axis), 1e-12) / levels
    whole = np.rint(value / np.expand_dims(scale, axis)).clip(-levels, levels)
    return whole.astype(np.int8), scale.astype(np.float32)


def embed(graph: Graph, epsilon: float) -> str:
    name = "encoder.embeddings"
    words = graph.weights[f"{name}.word_embeddings.weight"]
    if graph.storage in ("int8", "mixed"):
        whole, scale = quantize(words, axis=1, levels=EMBEDDING_LEVELS)
        rows = graph.node("Gather", [graph.constant("words.q", whole), "ids"])
        scales = graph.node("Gather", [graph.constant("words.scale", scale[:, None]), "ids"])
        word = graph.node("Mul", [graph.node("Cast", [rows], to=TensorProto.FLOAT), scales])
    else:
        word = graph.node("Gather", [graph.constant("words", words.astype(graph.real)), "ids"])
    kind = graph.node("Gather", [graph.vector(f"{name}.token_type_embeddings.weight"), "types"])
    length = graph.node("Shape", ["ids"], start=1, end=2)
    positions = graph.vector(f"{name}.position_embeddings.weight")
    place = graph.node("Slice", [positions, graph.integers(0), length, graph.integers(0)])
    total = graph.node("Add", [graph.node("Add", [word, kind]), place])
    norm = [graph.vector(f"{name}.LayerNorm.weight"), graph.vector(f"{name}.LayerNorm.bias")]
    return graph.node("LayerNormalization", [total, *norm], epsilon=epsilon)


def encoder_layer(graph: Graph, name: str, hidden: str, mask: str, heads: int, epsilon: float) -> str:
    """One post-norm transformer layer (Vaswani et al. 2017; BERT's order of bias, residual and norm)."""
    own = f"{name}.attention.self"
    parts = [f"{own}.{part}" for part in ("query", "key", "value")]
    together = np.concatenate([graph.weights[f"{part}.weight"].T for part in parts], axis=1)
    bias = np.concatenate([graph.weights[f"{part}.bias"] for part in parts]).astype(graph.real)
    weight, shift = f"{own}.weight", graph.constant(f"{own}.bias", bias)
    if graph.storage == "int8":
        # The fused operator multiplies in floating point, or in 8 bits with one scale for the whole batch.
        queries = graph.split(graph.product(weight, together, hidden), 3)
        mixed = graph.node("MultiHeadAttention", [*queries, shift, mask], domain=FUSED, num_heads=heads)
    else:
        inputs = [hidden, graph.matrix(weight, together), shift, mask]
        mixed = graph.node("Attention", inputs, domain=FUSED, num_heads=heads)
    hidden = residual(
        graph, f"{name}.attention.output", graph.linear(f"{name}.attention.output.dense", mixed), hidden, epsilon
    )
    wide = graph.linear(f"{name}.intermediate.dense", hidden)
    active = graph.node("BiasGelu", [wide, graph.vector(f"{name}.intermediate.dense.bias")], domain=FUSED)
    return residual(
        graph, f"{name}.output", graph.linear(f"{name}.output.dense", active, after_gelu=True), hidden, epsilon
    )


def residual(graph: Graph, name: str, change: str, hidden: str, epsilon: float) -> str:
    own = [graph.vector(f"{name}.{part}") for part in ("LayerNorm.weight", "LayerNorm.bias", "dense.bias")]
    return graph.node("SkipLayerNormalization", [change, hidden, *own], domain=FUSED, epsilon=epsilon)


def pool(graph: Graph, hidden: str) -> str:
    """(batch, length, width) to (batch, width); the same as `models.network.pool`."""
    targeted = graph.node("ReduceMax", ["types", graph.integers(1)], keepdims=1)
    others = graph.node("Mul", ["mask", graph.node("Sub", [graph.integers(1), targeted])])
    chosen = graph.node("Add", [graph.node("Mul", ["types", targeted]), others])
    # The mean is taken in fp32: a sum over 512 tokens does not fit 16 bits.
    weight = graph.node("Cast", [chosen], to=TensorProto.FLOAT)
    share = graph.node("Div", [weight, graph.node("ReduceSum", [weight, graph.integers(1)], keepdims=1)])
    row = graph.node("Unsqueeze", [share, graph.integers(1)])
    wide = graph.node("Cast", [hidden], to=TensorProto.FLOAT)
    return graph.node("Squeeze", [graph.node("MatMul", [row, wide]), graph.integers(1)])


def head(graph: Graph, pooled: str) -> str:
    weight = graph.constant("head.weight", graph.weights["head.weight"].T.astype(np.float32))
    product = graph.node("MatMul", [pooled, weight])
    return graph.node("Add", [product, graph.constant("head.bias", graph.weights["head.bias"].astype(np.float32))])
