"""The exported graph, written from the trained weights: a BERT encoder, pooling and the head in ONNX.

Written here rather than traced, so that it holds just the fused operators ONNX Runtime is fast at, on CPU and CUDA,
and the storage of each weight is chosen: `int8` multiplies in 8 bits, its input rounded by the step that training
learned, or by a scale for each token in a network that learned none, so that an answer never depends on its batch;
`mixed` keeps the matrices in 16 bits and computes in fp32; `fp16` stores and computes in 16 bits. All three keep the
word embeddings in 8 bits with a scale for each row, in one file that the graphs of a bundle share. `fp32` is the plain
graph.
Knows the weight names of transformers' BERT family, no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from models.bundle import EMBEDDINGS
from models.stored import (
    ACTIVATION_LEVELS,
    GELU_ZERO,
    LOG_STEP,
    PLAIN_WORDS,
    SIGNED_ZERO,
    WORD_ROWS,
    WORDS,
    WORDS_SCALE,
)

Storage = Literal["fp32", "int8", "mixed", "fp16"]
FUSED = "com.microsoft"
IR_VERSION = 10
OPSET = {"fp16": 18}
"""By storage, where it is not OPSET_CPU: CUDA's kernels are those of contrib operators, which need no more."""

OPSET_CPU = 23
"""The first with Attention, whose kernel takes two thirds of the time of the contrib operator's on a CPU."""

EMBEDDING_LEVELS = 127
"""Of a word embedding's sign: 8 bits."""

WEIGHT_LEVELS = 63
"""Of a weight's sign: 7 bits."""

SIGNED_LEVELS, GELU_LEVELS, GELU_LEAST = 127, 239, 0.17
"""Steps from a zero point up, and what is the least after a GELU."""

MASKED = -1e9


def build(weights: Mapping[str, NDArray[np.float32]], heads: int, epsilon: float, storage: Storage) -> onnx.ModelProto:
    """`ids`, `mask`, `types` (batch, length) int64 to `logits` (batch, labels) fp32, without a head to `vectors`."""
    graph = Graph(weights, storage)
    hidden = embed(graph, epsilon)
    mask = lengths(graph) if storage == "fp16" else pairs(graph)
    encoder_layer = fused_layer if storage == "fp16" else plain_layer
    layer = 0
    while f"encoder.encoder.layer.{layer}.output.dense.weight" in weights:
        hidden = encoder_layer(graph, f"encoder.encoder.layer.{layer}", hidden, mask, heads, epsilon)
        layer += 1
    pooled = pool(graph, hidden)
    labelled = "head.weight" in weights
    answer, width = ("logits", len(weights["head.bias"])) if labelled else ("vectors", weights[WORD_ROWS].shape[1])
    graph.node("Cast", [head(graph, pooled) if labelled else pooled], output=answer, to=TensorProto.FLOAT)
    shape = ["batch", "length"]
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "heed",
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("ids", "mask", "types")],
            [helper.make_tensor_value_info(answer, TensorProto.FLOAT, ["batch", width])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET.get(storage, OPSET_CPU)), helper.make_opsetid(FUSED, 1)],
        ir_version=IR_VERSION,
        producer_name="heed",
    )


def write(model: onnx.ModelProto, path: Path) -> None:
    """Save a graph, its word embeddings in 8 bits apart: in EMBEDDINGS beside it, which all graphs there share.

    ONNX Runtime maps that file into memory, so that the processes of a machine share it as well. Raises ValueError when
    it is there and holds other embeddings. The model is changed: it refers to the file.
    """
    for tensor in model.graph.initializer:
        if tensor.name == WORDS:
            shared = path.with_name(EMBEDDINGS)
            if shared.exists() and shared.read_bytes() != tensor.raw_data:
                raise ValueError(f"{shared} holds the embeddings of another model")
            shared.write_bytes(tensor.raw_data)
            set_external_data(tensor, EMBEDDINGS, offset=0, length=len(tensor.raw_data))
            tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())


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
        stored = self.constant(f"{name}.q", whole), self.constant(f"{name}.scale", scale)
        if (log_step := self.weights.get(f"{name}.{LOG_STEP}")) is not None:
            return self.rounded(hidden, *stored, self.scalar(f"{name}.step", float(np.exp(log_step))), zero, bias)
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
            for end, level in (("lowest", -zero), ("highest", ACTIVATION_LEVELS - zero))
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
        return self.node("Max", [highest, self.scalar("gelu_least", GELU_LEVELS * GELU_LEAST / GELU_ZERO)])


def quantize(value: NDArray[np.float32], axis: int, levels: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric: `whole * scale` is near `value`; one scale for each slice across `axis`, which is reduced."""
    scale = np.maximum(np.abs(value).max(axis=axis), 1e-12) / levels
    whole = np.rint(value / np.expand_dims(scale, axis)).clip(-levels, levels)
    return whole.astype(np.int8), scale.astype(np.float32)


def embed(graph: Graph, epsilon: float) -> str:
    name = "encoder.embeddings"
    words = graph.weights[f"{name}.word_embeddings.weight"]
    if graph.storage == "fp32":
        word = graph.node("Gather", [graph.constant(PLAIN_WORDS, words), "ids"])
    else:
        whole, scale = quantize(words, axis=1, levels=EMBEDDING_LEVELS)
        rows = graph.node("Gather", [graph.constant(WORDS, whole), "ids"])
        scales = graph.node("Gather", [graph.constant(WORDS_SCALE, scale[:, None]), "ids"])
        # In fp32 first: 16 bits round small scales away.
        word = graph.node("Mul", [graph.node("Cast", [rows], to=TensorProto.FLOAT), scales])
        word = graph.node("Cast", [word], to=graph.real_type) if graph.storage == "fp16" else word
    kind = graph.node("Gather", [graph.vector(f"{name}.token_type_embeddings.weight"), "types"])
    length = graph.node("Shape", ["ids"], start=1, end=2)
    positions = graph.vector(f"{name}.position_embeddings.weight")
    place = graph.node("Slice", [positions, graph.integers(0), length, graph.integers(0)])
    total = graph.node("Add", [graph.node("Add", [word, kind]), place])
    norm = [graph.vector(f"{name}.LayerNorm.weight"), graph.vector(f"{name}.LayerNorm.bias")]
    return graph.node("LayerNormalization", [total, *norm], epsilon=epsilon)


def lengths(graph: Graph) -> str:
    """Of each text, (batch,), which CUDA's fused attention kernels take; with a mask they would not be used.

    Texts are padded at their end, so the two say the same.
    """
    counted = graph.node("ReduceSum", ["mask", graph.integers(1)], keepdims=0)
    return graph.node("Cast", [counted], to=TensorProto.INT32)


def pairs(graph: Graph) -> str:
    """Which token may look at which, (batch, 1, length, length), as the terms that are added to the logits."""
    known = graph.node("Cast", ["mask"], to=TensorProto.BOOL)
    terms = graph.node("Where", [known, graph.scalar("open", 0.0), graph.scalar("masked", MASKED)])
    batch = graph.node("Shape", ["mask"], start=0, end=1)
    length = graph.node("Shape", ["mask"], start=1, end=2)
    shape = graph.node("Concat", [batch, graph.integers(1), length, length], axis=0)
    return graph.node("Expand", [graph.node("Unsqueeze", [terms, graph.integers(1, 2)]), shape])


def together(graph: Graph, own: str) -> tuple[str, NDArray[np.float32], str]:
    """Queries, keys and values as one product: the name of the first, the weight (inputs, 3 outputs) and the bias."""
    parts = [f"{own}.{part}" for part in ("query", "key", "value")]
    weight = np.concatenate([graph.weights[f"{part}.weight"].T for part in parts], axis=1)
    bias = np.concatenate([graph.weights[f"{part}.bias"] for part in parts]).astype(graph.real)
    return parts[0], weight, graph.constant(f"{own}.bias", bias)


def plain_layer(graph: Graph, name: str, hidden: str, mask: str, heads: int, epsilon: float) -> str:
    """One post-norm transformer layer (Vaswani et al. 2017; BERT's order of residual and norm) in standard operators.

    On a CPU they are faster than the contrib ones, of which SkipLayerNormalization is not vectorised; `Sum` and not
    `Add`, because ONNX Runtime would make one of that and the norm.
    """

    def norm(change: str, before: str, part: str) -> str:
        values = [graph.vector(f"{part}.LayerNorm.{of}") for of in ("weight", "bias")]
        return graph.node("LayerNormalization", [graph.node("Sum", [change, before]), *values], epsilon=epsilon)

    product = graph.product(*together(graph, f"{name}.attention.self"), hidden, SIGNED_ZERO)
    parts = graph.split(product, 3)
    mixed = graph.node("Attention", [*parts, mask], q_num_heads=heads, kv_num_heads=heads)
    hidden = norm(graph.linear(f"{name}.attention.output.dense", mixed), hidden, f"{name}.attention.output")
    wide = graph.node("Gelu", [graph.linear(f"{name}.intermediate.dense", hidden)])
    return norm(graph.linear(f"{name}.output.dense", wide, GELU_ZERO), hidden, f"{name}.output")


def fused_layer(graph: Graph, name: str, hidden: str, mask: str, heads: int, epsilon: float) -> str:
    """The same in the fused operators that ONNX Runtime has kernels of for CUDA."""

    def times(part: str, given: str, zero: int = SIGNED_ZERO) -> str:
        return graph.node("MatMul", list(graph.bounded(part, graph.weights[f"{part}.weight"].T, given, zero)))

    def residual(part: str, change: str, before: str) -> str:
        own = [graph.vector(f"{part}.{of}") for of in ("LayerNorm.weight", "LayerNorm.bias", "dense.bias")]
        return graph.node("SkipLayerNormalization", [change, before, *own], domain=FUSED, epsilon=epsilon)

    first, weight, bias = together(graph, f"{name}.attention.self")
    inputs = [*graph.bounded(first, weight, hidden, SIGNED_ZERO), bias, mask]
    mixed = graph.node("Attention", inputs, domain=FUSED, num_heads=heads)
    hidden = residual(f"{name}.attention.output", times(f"{name}.attention.output.dense", mixed), hidden)
    wide = times(f"{name}.intermediate.dense", hidden)
    active = graph.node("BiasGelu", [wide, graph.vector(f"{name}.intermediate.dense.bias")], domain=FUSED)
    return residual(f"{name}.output", times(f"{name}.output.dense", active, GELU_ZERO), hidden)


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
