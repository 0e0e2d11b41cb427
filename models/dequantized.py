"""The shipped graph's own weights in a plain fp32 graph, whose answers are those without rounding on the way.

Needs the onnx package.
"""

from __future__ import annotations

from pathlib import Path

import onnx

from models.graph import build
from models.stored import WORD_ROWS, stored_in, weights_of, word_rows


def dequantized(graph: Path) -> onnx.ModelProto:
    """A graph written as `int8`, `mixed` or `fp32`, all of it in fp32; raises ValueError as `stored_in`."""
    stored = stored_in(graph)
    weights = weights_of(stored.tensors) | {WORD_ROWS: word_rows(stored.tensors)}
    return build(weights, stored.heads, stored.epsilon, "fp32")
