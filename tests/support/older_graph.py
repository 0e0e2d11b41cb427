"""A classifier's graph as older exports wrote it: the vectors are computed, but are no output."""

from __future__ import annotations

import onnx

from models.graph.names import LOGITS


def older_graph(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the graph whose only output is the logits."""
    older = onnx.ModelProto()
    older.CopyFrom(graph)
    logits = [output for output in older.graph.output if output.name == LOGITS]
    del older.graph.output[:]
    older.graph.output.extend(logits)
    return older
