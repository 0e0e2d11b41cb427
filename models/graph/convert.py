"""A bundle's graph written anew from the weights that it stores, in another storage.

`fp32` answers without rounding on the way, which explanations are compared with; `fp16` is what serves on a GPU. So a
bundle holds its weights once, whatever it runs on. Needs the onnx package.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from models.graph.builder import build_graph
from models.graph.names import WORD_EMBEDDINGS
from models.graph.weights import dequantize, read_graph_weights, word_embeddings
from models.graph.writer import Precision


def convert_graph(graph: Path, storage: Precision) -> onnx.ModelProto:
    """Of a graph written as `int8`, `mixed` or `fp32`; raises ValueError as `stored_in`."""
    stored = read_graph_weights(graph)
    weights = dequantize(stored.tensors) | {WORD_EMBEDDINGS: word_embeddings(stored.tensors)}
    return build_graph(weights, stored.heads, stored.epsilon, storage)
