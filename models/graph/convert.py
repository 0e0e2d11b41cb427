"""A bundle's graph written anew from the weights that it stores, in another storage.

`fp32` answers without rounding on the way, which explanations are compared with; `fp16` is what serves on a GPU. So a
bundle holds its weights once, whatever it runs on. Needs the onnx package.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from models.graph.builder import build
from models.graph.names import WORD_EMBEDDINGS
from models.graph.weights import stored_in, weights_of, word_rows
from models.graph.writer import Storage


def rewritten(graph: Path, storage: Storage) -> onnx.ModelProto:
    """Of a graph written as `int8`, `mixed` or `fp32`; raises ValueError as `stored_in`."""
    stored = stored_in(graph)
    weights = weights_of(stored.tensors) | {WORD_EMBEDDINGS: word_rows(stored.tensors)}
    return build(weights, stored.heads, stored.epsilon, storage)
