"""Conversion of a bundle's graph: rebuilt in another precision from the weights that it stores.

So a bundle holds its weights in a single file, whatever device runs it. Explanations are compared with the `fp32`
graph, which does not round activations. GPUs serve the `fp16` graph. Needs the onnx package.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from models.graph.builder import build_graph
from models.graph.names import WORD_EMBEDDINGS
from models.graph.weights import dequantize, read_graph_weights, word_embeddings
from models.graph.writer import Precision


def convert_graph(graph: Path, precision: Precision) -> onnx.ModelProto:
    """Return an `int8`, `mixed` or `fp32` graph in another precision; raises ValueError as `read_graph_weights`."""
    stored = read_graph_weights(graph)
    weights = dequantize(stored.tensors) | {WORD_EMBEDDINGS: word_embeddings(stored.tensors)}
    return build_graph(weights, stored.heads, stored.epsilon, precision)
