"""The exported graph, written from the trained weights: a BERT encoder, pooling and the head in ONNX.

Written here rather than traced, so that it holds just the fused operators ONNX Runtime is fast at, on CPU and CUDA,
and the storage of each weight is chosen: `int8` multiplies in 8 bits, its input rounded by the step that training
learned, or by a scale for each token in a network that learned none, so that an answer never depends on its batch;
`mixed` keeps the matrices in 16 bits and computes in fp32; `fp16` stores and computes in 16 bits. All three keep the
word embeddings in 8 bits with a scale for each row, in one file that the graphs of a bundle share. `fp32` is the plain
graph.
Knows no data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from models.bundle import EMBEDDINGS
from models.graph.names import (
    EMBEDDING_NORM,
    HEAD_BIAS,
    HEAD_WEIGHT,
    POSITION_EMBEDDINGS,
    TYPE_EMBEDDINGS,
    WORD_EMBEDDINGS,
    WORDS_FP32,
    WORDS_INT8,
    WORDS_SCALE,
    LayerNames,
    find_layers,
)
from models.graph.weights import GELU_ZERO, SIGNED_ZERO
from models.graph.writer import FUSED, GraphWriter, Precision, quantize

IR_VERSION = 10
OPSET = {"fp16": 18}
"""By storage, where it is not OPSET_CPU: CUDA's kernels are those of contrib operators, which need no more."""

OPSET_CPU = 23
"""The first with Attention, whose kernel takes two thirds of the time of the contrib operator's on a CPU."""

EMBEDDING_LEVELS = 127
"""Of a word embedding's sign: 8 bits."""

MASKED = -1e9


def build_graph(
    weights: Mapping[str, NDArray[np.float32]], heads: int, epsilon: float, storage: Precision
) -> onnx.ModelProto:
    """`ids`, `mask`, `types` (batch, length) int64 to `logits` (batch, labels) fp32, without a head to `vectors`."""
    graph = GraphWriter(weights, storage)
    hidden = add_embeddings(graph, epsilon)
    mask = add_lengths(graph) if storage == "fp16" else add_attention_pairs(graph)
    encoder_layer = add_fused_layer if storage == "fp16" else add_standard_layer
    for names in find_layers(weights):
        hidden = encoder_layer(graph, names, hidden, mask, heads, epsilon)
    pooled = add_pooling(graph, hidden)
    labelled = HEAD_WEIGHT in weights
    answer, width = ("logits", len(weights[HEAD_BIAS])) if labelled else ("vectors", weights[WORD_EMBEDDINGS].shape[1])
    graph.node("Cast", [add_classifier(graph, pooled) if labelled else pooled], output=answer, to=TensorProto.FLOAT)
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


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Save a graph, its word embeddings in 8 bits apart: in EMBEDDINGS beside it, which all graphs there share.

    ONNX Runtime maps that file into memory, so that the processes of a machine share it as well. Raises ValueError when
    it is there and holds other embeddings. The model is changed: it refers to the file.
    """
    for tensor in model.graph.initializer:
        if tensor.name == WORDS_INT8:
            shared = path.with_name(EMBEDDINGS)
            if shared.exists() and shared.read_bytes() != tensor.raw_data:
                raise ValueError(f"{shared} holds the embeddings of another model")
            shared.write_bytes(tensor.raw_data)
            set_external_data(tensor, EMBEDDINGS, offset=0, length=len(tensor.raw_data))
            tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())


def add_embeddings(graph: GraphWriter, epsilon: float) -> str:
    words = graph.weights[WORD_EMBEDDINGS]
    if graph.storage == "fp32":
        word = graph.node("Gather", [graph.constant(WORDS_FP32, words), "ids"])
    else:
        whole, scale = quantize(words, axis=1, levels=EMBEDDING_LEVELS)
        rows = graph.node("Gather", [graph.constant(WORDS_INT8, whole), "ids"])
        scales = graph.node("Gather", [graph.constant(WORDS_SCALE, scale[:, None]), "ids"])
        # In fp32 first: 16 bits round small scales away.
        word = graph.node("Mul", [graph.node("Cast", [rows], to=TensorProto.FLOAT), scales])
        word = graph.node("Cast", [word], to=graph.real_type) if graph.storage == "fp16" else word
    kind = graph.node("Gather", [graph.vector(TYPE_EMBEDDINGS), "types"])
    length = graph.node("Shape", ["ids"], start=1, end=2)
    positions = graph.vector(POSITION_EMBEDDINGS)
    place = graph.node("Slice", [positions, graph.integers(0), length, graph.integers(0)])
    total = graph.node("Add", [graph.node("Add", [word, kind]), place])
    norm = [graph.vector(f"{EMBEDDING_NORM}.weight"), graph.vector(f"{EMBEDDING_NORM}.bias")]
    return graph.node("LayerNormalization", [total, *norm], epsilon=epsilon)


def add_lengths(graph: GraphWriter) -> str:
    """Of each text, (batch,), which CUDA's fused attention kernels take; with a mask they would not be used.

    Texts are padded at their end, so the two say the same.
    """
    counted = graph.node("ReduceSum", ["mask", graph.integers(1)], keepdims=0)
    return graph.node("Cast", [counted], to=TensorProto.INT32)


def add_attention_pairs(graph: GraphWriter) -> str:
    """Which token may look at which, (batch, 1, length, length), as the terms that are added to the logits."""
    known = graph.node("Cast", ["mask"], to=TensorProto.BOOL)
    terms = graph.node("Where", [known, graph.scalar("open", 0.0), graph.scalar("masked", MASKED)])
    batch = graph.node("Shape", ["mask"], start=0, end=1)
    length = graph.node("Shape", ["mask"], start=1, end=2)
    shape = graph.node("Concat", [batch, graph.integers(1), length, length], axis=0)
    return graph.node("Expand", [graph.node("Unsqueeze", [terms, graph.integers(1, 2)]), shape])


def add_joined_projection(graph: GraphWriter, names: LayerNames) -> tuple[str, NDArray[np.float32], str]:
    """Queries, keys and values as one product: the name of the first, the weight (inputs, 3 outputs) and the bias."""
    weight = np.concatenate([graph.weights[f"{part}.weight"].T for part in names.parts], axis=1)
    bias = np.concatenate([graph.weights[f"{part}.bias"] for part in names.parts]).astype(graph.real)
    return names.parts[0], weight, graph.constant(f"{names.attention}.bias", bias)


def add_standard_layer(
    graph: GraphWriter, names: LayerNames, hidden: str, mask: str, heads: int, epsilon: float
) -> str:
    """One post-norm transformer layer (Vaswani et al. 2017; BERT's order of residual and norm) in standard operators.

    On a CPU they are faster than the contrib ones, of which SkipLayerNormalization is not vectorised; `Sum` and not
    `Add`, because ONNX Runtime would make one of that and the norm.
    """

    def norm(change: str, before: str, part: str) -> str:
        values = [graph.vector(f"{part}.{of}") for of in ("weight", "bias")]
        return graph.node("LayerNormalization", [graph.node("Sum", [change, before]), *values], epsilon=epsilon)

    product = graph.product(*add_joined_projection(graph, names), hidden, SIGNED_ZERO)
    parts = graph.split(product, 3)
    mixed = graph.node("Attention", [*parts, mask], q_num_heads=heads, kv_num_heads=heads)
    hidden = norm(graph.linear(names.attention_output, mixed), hidden, names.attention_norm)
    wide = graph.node("Gelu", [graph.linear(names.intermediate, hidden)])
    return norm(graph.linear(names.output, wide, GELU_ZERO), hidden, names.output_norm)


def add_fused_layer(graph: GraphWriter, names: LayerNames, hidden: str, mask: str, heads: int, epsilon: float) -> str:
    """The same in the fused operators that ONNX Runtime has kernels of for CUDA."""

    def times(part: str, given: str, zero: int = SIGNED_ZERO) -> str:
        return graph.node("MatMul", list(graph.bounded(part, graph.weights[f"{part}.weight"].T, given, zero)))

    def residual(norm: str, linear: str, change: str, before: str) -> str:
        own = [graph.vector(f"{part}.{of}") for part, of in ((norm, "weight"), (norm, "bias"), (linear, "bias"))]
        return graph.node("SkipLayerNormalization", [change, before, *own], domain=FUSED, epsilon=epsilon)

    first, weight, bias = add_joined_projection(graph, names)
    inputs = [*graph.bounded(first, weight, hidden, SIGNED_ZERO), bias, mask]
    mixed = graph.node("Attention", inputs, domain=FUSED, num_heads=heads)
    hidden = residual(names.attention_norm, names.attention_output, times(names.attention_output, mixed), hidden)
    wide = times(names.intermediate, hidden)
    active = graph.node("BiasGelu", [wide, graph.vector(f"{names.intermediate}.bias")], domain=FUSED)
    return residual(names.output_norm, names.output, times(names.output, active, GELU_ZERO), hidden)


def add_pooling(graph: GraphWriter, hidden: str) -> str:
    """(batch, length, width) to (batch, width); the same as `models.networks.encoder.pool_hidden`."""
    targeted = graph.node("ReduceMax", ["types", graph.integers(1)], keepdims=1)
    others = graph.node("Mul", ["mask", graph.node("Sub", [graph.integers(1), targeted])])
    chosen = graph.node("Add", [graph.node("Mul", ["types", targeted]), others])
    # The mean is taken in fp32: a sum over 512 tokens does not fit 16 bits.
    weight = graph.node("Cast", [chosen], to=TensorProto.FLOAT)
    share = graph.node("Div", [weight, graph.node("ReduceSum", [weight, graph.integers(1)], keepdims=1)])
    row = graph.node("Unsqueeze", [share, graph.integers(1)])
    wide = graph.node("Cast", [hidden], to=TensorProto.FLOAT)
    return graph.node("Squeeze", [graph.node("MatMul", [row, wide]), graph.integers(1)])


def add_classifier(graph: GraphWriter, pooled: str) -> str:
    weight = graph.constant(HEAD_WEIGHT, graph.weights[HEAD_WEIGHT].T.astype(np.float32))
    product = graph.node("MatMul", [pooled, weight])
    return graph.node("Add", [product, graph.constant(HEAD_BIAS, graph.weights[HEAD_BIAS].astype(np.float32))])
