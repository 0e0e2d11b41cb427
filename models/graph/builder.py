"""The builder of the exported graph: a BERT encoder, pooling and the classifier in ONNX, from trained weights.

The graph is built rather than traced. So it holds exactly the operators that ONNX Runtime runs fast, on CPU and CUDA,
and the precision of each weight is a choice:

- `int8` multiplies in 8 bits. The input is rounded by the step learned in training, or else by a scale for each token.
  So a prediction never depends on its batch.
- `mixed` stores the matrices in 16 bits and computes in fp32.
- `fp16` stores and computes in 16 bits.
- `fp32` is the plain graph.

The first three store the word embeddings in 8 bits with a scale for each row, in a file that the graphs of a bundle
share. Knows no data.
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
    LOGITS,
    POSITION_EMBEDDINGS,
    TYPE_EMBEDDINGS,
    VECTORS,
    WORD_EMBEDDINGS,
    WORDS_FP32,
    WORDS_INT8,
    WORDS_SCALE,
    LayerNames,
    find_layers,
)
from models.graph.weights import GELU_ZERO, SIGNED_ZERO
from models.graph.writer import CONTRIB_DOMAIN, GraphWriter, Precision, quantize

IR_VERSION = 10
OPSET = {"fp16": 18}
"""The opsets by precision where they differ from OPSET_CPU. CUDA runs contrib operators, which need no newer opset."""

OPSET_CPU = 23
"""The first opset with Attention, whose kernel takes two thirds of the contrib operator's time on a CPU."""

EMBEDDING_LEVELS = 127
"""The levels on each side of zero for a word embedding: 8 bits."""

MASKED_LOGIT = -1e9


def build_graph(
    weights: Mapping[str, NDArray[np.float32]], heads: int, epsilon: float, precision: Precision
) -> onnx.ModelProto:
    """Return the graph of the weights.

    Its inputs `ids`, `mask` and `types` are (batch, length) int64. Its outputs in fp32 are `logits` (batch, labels), if
    there is a classifier, and `vectors` (batch, width): what is pooled, and what the classifier reads.
    """
    graph = GraphWriter(weights, precision)
    hidden = add_embeddings(graph, epsilon)
    mask = add_text_lengths(graph) if precision == "fp16" else add_attention_mask(graph)
    encoder_layer = add_fused_layer if precision == "fp16" else add_standard_layer
    for names in find_layers(weights):
        hidden = encoder_layer(graph, names, hidden, mask, heads, epsilon)
    graph.add_node("Cast", [add_pooling(graph, hidden)], output=VECTORS, to=TensorProto.FLOAT)
    outputs = {VECTORS: weights[WORD_EMBEDDINGS].shape[1]}
    if HEAD_WEIGHT in weights:
        outputs = {add_classifier(graph, VECTORS): len(weights[HEAD_BIAS])} | outputs
    shape = ["batch", "length"]
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            "heed",
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name in ("ids", "mask", "types")],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
                for name, width in outputs.items()
            ],
            graph.initializers,
        ),
        opset_imports=[
            helper.make_opsetid("", OPSET.get(precision, OPSET_CPU)),
            helper.make_opsetid(CONTRIB_DOMAIN, 1),
        ],
        ir_version=IR_VERSION,
        producer_name="heed",
    )


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Save a graph, with its int8 word embeddings in the file EMBEDDINGS, which all graphs of a folder share.

    ONNX Runtime maps that file into memory, so the processes of a machine share it too. The model is modified to refer
    to the file.

    Raises:
        ValueError: The file exists and holds the embeddings of another model.
    """
    for tensor in model.graph.initializer:
        if tensor.name == WORDS_INT8:
            shared = path.with_name(EMBEDDINGS)
            if shared.exists() and shared.read_bytes() != tensor.raw_data:
                raise ValueError(f"{shared} holds the embeddings of another model; save to another folder")
            shared.write_bytes(tensor.raw_data)
            set_external_data(tensor, EMBEDDINGS, offset=0, length=len(tensor.raw_data))
            tensor.ClearField("raw_data")
    path.write_bytes(model.SerializeToString())


def add_embeddings(graph: GraphWriter, epsilon: float) -> str:
    """Add the sum of word, type and position embeddings, normalised: (batch, length, width)."""
    words = graph.weights[WORD_EMBEDDINGS]
    if graph.precision == "fp32":
        word = graph.add_node("Gather", [graph.add_constant(WORDS_FP32, words), "ids"])
    else:
        quantized, scale = quantize(words, axis=1, levels=EMBEDDING_LEVELS)
        rows = graph.add_node("Gather", [graph.add_constant(WORDS_INT8, quantized), "ids"])
        scales = graph.add_node("Gather", [graph.add_constant(WORDS_SCALE, scale[:, None]), "ids"])
        # Multiplied in fp32, because 16 bits round small scales to zero.
        word = graph.add_node("Mul", [graph.add_node("Cast", [rows], to=TensorProto.FLOAT), scales])
        word = graph.add_node("Cast", [word], to=graph.onnx_float_type) if graph.precision == "fp16" else word
    token_type = graph.add_node("Gather", [graph.add_vector(TYPE_EMBEDDINGS), "types"])
    length = graph.add_node("Shape", ["ids"], start=1, end=2)
    positions = graph.add_vector(POSITION_EMBEDDINGS)
    position = graph.add_node("Slice", [positions, graph.add_integers(0), length, graph.add_integers(0)])
    total = graph.add_node("Add", [graph.add_node("Add", [word, token_type]), position])
    norm = [graph.add_vector(f"{EMBEDDING_NORM}.weight"), graph.add_vector(f"{EMBEDDING_NORM}.bias")]
    return graph.add_node("LayerNormalization", [total, *norm], epsilon=epsilon)


def add_text_lengths(graph: GraphWriter) -> str:
    """Add the length of each text, (batch,), for CUDA's fused attention kernels, which do not run with a mask.

    Texts are padded at their end, so lengths are equivalent to the mask.
    """
    lengths = graph.add_node("ReduceSum", ["mask", graph.add_integers(1)], keepdims=0)
    return graph.add_node("Cast", [lengths], to=TensorProto.INT32)


def add_attention_mask(graph: GraphWriter) -> str:
    """Add the terms for the attention logits, (batch, 1, length, length): 0 for tokens, MASKED_LOGIT for padding."""
    is_token = graph.add_node("Cast", ["mask"], to=TensorProto.BOOL)
    terms = graph.add_node("Where", [is_token, graph.add_scalar("open", 0.0), graph.add_scalar("masked", MASKED_LOGIT)])
    batch = graph.add_node("Shape", ["mask"], start=0, end=1)
    length = graph.add_node("Shape", ["mask"], start=1, end=2)
    shape = graph.add_node("Concat", [batch, graph.add_integers(1), length, length], axis=0)
    return graph.add_node("Expand", [graph.add_node("Unsqueeze", [terms, graph.add_integers(1, 2)]), shape])


def join_projections(graph: GraphWriter, names: LayerNames) -> tuple[str, NDArray[np.float32], str]:
    """Return queries, keys and values as a single product: first name, weight (inputs, 3 outputs), name of the bias."""
    weight = np.concatenate([graph.weights[f"{name}.weight"].T for name in names.parts], axis=1)
    bias = np.concatenate([graph.weights[f"{name}.bias"] for name in names.parts]).astype(graph.float_type)
    return names.parts[0], weight, graph.add_constant(f"{names.attention}.bias", bias)


def add_standard_layer(
    graph: GraphWriter, names: LayerNames, hidden: str, mask: str, heads: int, epsilon: float
) -> str:
    """Add a post-norm transformer layer (Vaswani et al. 2017, residual and norm as in BERT) in standard operators.

    On a CPU they are faster than contrib operators, whose SkipLayerNormalization is not vectorised. The residual is a
    `Sum` because ONNX Runtime would fuse an `Add` with the norm into that operator.
    """

    def add_norm(change: str, residual: str, norm: str) -> str:
        parameters = [graph.add_vector(f"{norm}.weight"), graph.add_vector(f"{norm}.bias")]
        return graph.add_node(
            "LayerNormalization", [graph.add_node("Sum", [change, residual]), *parameters], epsilon=epsilon
        )

    product = graph.add_product(*join_projections(graph, names), hidden, SIGNED_ZERO)
    projections = graph.add_split(product, 3)
    attended = graph.add_node("Attention", [*projections, mask], q_num_heads=heads, kv_num_heads=heads)
    hidden = add_norm(graph.add_linear(names.attention_output, attended), hidden, names.attention_norm)
    wide = graph.add_node("Gelu", [graph.add_linear(names.intermediate, hidden)])
    return add_norm(graph.add_linear(names.output, wide, GELU_ZERO), hidden, names.output_norm)


def add_fused_layer(graph: GraphWriter, names: LayerNames, hidden: str, mask: str, heads: int, epsilon: float) -> str:
    """Add the same layer in the fused operators for which ONNX Runtime has CUDA kernels."""

    def multiply(name: str, inputs: str, zero: int = SIGNED_ZERO) -> str:
        return graph.add_node(
            "MatMul", list(graph.add_clipped_inputs(name, graph.weights[f"{name}.weight"].T, inputs, zero))
        )

    def add_residual(norm: str, linear: str, change: str, before: str) -> str:
        parameters = [graph.add_vector(name) for name in (f"{norm}.weight", f"{norm}.bias", f"{linear}.bias")]
        inputs = [change, before, *parameters]
        return graph.add_node("SkipLayerNormalization", inputs, domain=CONTRIB_DOMAIN, epsilon=epsilon)

    first, weight, bias = join_projections(graph, names)
    inputs = [*graph.add_clipped_inputs(first, weight, hidden, SIGNED_ZERO), bias, mask]
    attended = graph.add_node("Attention", inputs, domain=CONTRIB_DOMAIN, num_heads=heads)
    change = multiply(names.attention_output, attended)
    hidden = add_residual(names.attention_norm, names.attention_output, change, hidden)
    wide = multiply(names.intermediate, hidden)
    active = graph.add_node("BiasGelu", [wide, graph.add_vector(f"{names.intermediate}.bias")], domain=CONTRIB_DOMAIN)
    return add_residual(names.output_norm, names.output, multiply(names.output, active, GELU_ZERO), hidden)


def add_pooling(graph: GraphWriter, hidden: str) -> str:
    """Add the pooling (batch, length, width) to (batch, width), equal to `models.networks.encoder.pool_hidden`."""
    has_entity = graph.add_node("ReduceMax", ["types", graph.add_integers(1)], keepdims=1)
    plain_mask = graph.add_node("Mul", ["mask", graph.add_node("Sub", [graph.add_integers(1), has_entity])])
    pooled_tokens = graph.add_node("Add", [graph.add_node("Mul", ["types", has_entity]), plain_mask])
    # The mean is computed in fp32: a sum over 512 tokens does not fit 16 bits.
    weight = graph.add_node("Cast", [pooled_tokens], to=TensorProto.FLOAT)
    share = graph.add_node("Div", [weight, graph.add_node("ReduceSum", [weight, graph.add_integers(1)], keepdims=1)])
    row = graph.add_node("Unsqueeze", [share, graph.add_integers(1)])
    wide = graph.add_node("Cast", [hidden], to=TensorProto.FLOAT)
    return graph.add_node("Squeeze", [graph.add_node("MatMul", [row, wide]), graph.add_integers(1)])


def add_classifier(graph: GraphWriter, vectors: str) -> str:
    """Add the output of the logits (batch, labels) of the vectors, in fp32."""
    weight = graph.add_constant(HEAD_WEIGHT, graph.weights[HEAD_WEIGHT].T.astype(np.float32))
    product = graph.add_node("MatMul", [vectors, weight])
    bias = graph.add_constant(HEAD_BIAS, graph.weights[HEAD_BIAS].astype(np.float32))
    return graph.add_node("Add", [product, bias], output=LOGITS)
