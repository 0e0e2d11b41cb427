"""The exported graph, written from the trained weights: a BERT encoder, pooling and the head in ONNX.

Written here rather than traced, so that it holds just the fused operators ONNX Runtime is fast at, on CPU and CUDA,
and the storage of each weight is chosen: `int8` keeps matrices in 8 bits a weight with a scale for each output
column (the word embeddings: each row) and computes in fp32, so an answer never depends on its batch; `mixed` keeps the
word embeddings so and the matrices in 16 bits; `fp16` stores and computes in 16 bits; `fp32` is the plain graph. Knows
the weight names of transformers' BERT family, no data.
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

    def constant(self, name: str, value: NDArray[Any]) -> str:
        if name not in self._kept:
            self.initializers.append(numpy_helper.from_array(value, name))
            self._kept[name] = name
        return name

    def integers(self, *values: int) -> str:
        return self.constant("integers_" + "_".join(map(str, values)), np.asarray(values, np.int64))

    def vector(self, name: str) -> str:
        return self.constant(name, self.weights[name].astype(self.real))

    def matrix(self, name: str, value: NDArray[np.float32]) -> str:
        """A weight matrix (inputs, outputs), in 8 bits with a scale for each output where storage is `int8`."""
        if self.storage == "mixed":
            return self.node("Cast", [self.constant(name, value.astype(np.float16))], to=TensorProto.FLOAT)
        if self.storage != "int8":
            return self.constant(name, value.astype(self.real))
        whole, scale = quantize(value, axis=0)
        parts = [self.constant(f"{name}.q", whole), self.constant(f"{name}.scale", scale)]
        return self.node("DequantizeLinear", parts, axis=1)

    def linear(self, name: str, hidden: str) -> str:
        """`hidden` times the transposed weight, without the bias, which the next fused operator adds."""
        return self.node("MatMul", [hidden, self.matrix(f"{name}.weight", self.weights[f"{name}.weight"].T)])


def quantize(value: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric 8 bits: `whole * scale` is near `value`; one scale for each slice across `axis`, which is reduced."""
    scale = np.maximum(np.abs(value).max(axis=axis), 1e-12) / 127
    whole = np.rint(value / np.expand_dims(scale, axis)).clip(-127, 127)
    return whole.astype(np.int8), scale.astype(np.float32)


def embed(graph: Graph, epsilon: float) -> str:
    name = "encoder.embeddings"
    words = graph.weights[f"{name}.word_embeddings.weight"]
    if graph.storage in ("int8", "mixed"):
        whole, scale = quantize(words, axis=1)
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
    inputs = [hidden, graph.matrix(f"{own}.weight", together), graph.constant(f"{own}.bias", bias), mask]
    mixed = graph.node("Attention", inputs, domain=FUSED, num_heads=heads)
    hidden = residual(
        graph, f"{name}.attention.output", graph.linear(f"{name}.attention.output.dense", mixed), hidden, epsilon
    )
    wide = graph.linear(f"{name}.intermediate.dense", hidden)
    active = graph.node("BiasGelu", [wide, graph.vector(f"{name}.intermediate.dense.bias")], domain=FUSED)
    return residual(graph, f"{name}.output", graph.linear(f"{name}.output.dense", active), hidden, epsilon)


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
