"""Attention maps from the graph that serves, recomputed from its queries, keys and values.

ONNX Runtime fuses queries, keys and values to one output and keeps no attention weights. But a graph returns any value
that is listed as an output, and more fields may follow the bytes of a protobuf message. Outputs appended to the served
file therefore give a graph of the same weights and arithmetic, and this module takes the softmax. So there is no
second file, and the graph that answers is as fast as before. Only callers that need maps open a session with these
outputs.
Needs neither torch nor the onnx package.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.graph.names import layer_names
from models.graph.protobuf import INPUT, encode_outputs, find_attributes, find_nodes, read_constants, read_graph
from models.graph.weights import dequantize_matrix
from models.runtime.onnx import open_session
from models.text.encoding import Batch


@dataclass(frozen=True, slots=True)
class AttentionNode:
    """An attention operator of a graph: the names of its queries, keys and values, and its number of heads."""

    queries: str
    keys: str
    values: str
    heads: int


@dataclass(frozen=True, slots=True)
class AttentionMaps:
    """The outputs for a batch, and the states that its attention maps are computed from, layer by layer on demand.

    `logits` (batch, labels), `mask` (batch, length). `queries`, `keys` and `values` (layers, batch, heads, length,
    size). `output_projections` (layers, heads, size, width) add the result of each head to the hidden state.
    """

    logits: NDArray[np.float32]
    mask: NDArray[np.int64]
    queries: NDArray[np.float32]
    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    output_projections: NDArray[np.float32]

    @property
    def layers(self) -> int:
        return len(self.queries)

    def attention(self, layer: int) -> NDArray[np.float32]:
        """Return the share that each token (row) takes from each token (column), (batch, heads, length, length).

        Padding has no share.
        """
        queries, keys = self.queries[layer], self.keys[layer]
        scores = queries @ keys.swapaxes(-1, -2) / np.sqrt(queries.shape[-1], dtype=np.float32)
        scores = np.where(self.mask[:, None, None, :] > 0, scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights: NDArray[np.float32] = shares / shares.sum(axis=-1, keepdims=True)
        return weights

    def value_norms(self, layer: int) -> NDArray[np.float32]:
        """Return the norm of the vector that each token contributes through each head, (batch, heads, length).

        This is before attention. Attention times the norm is the token's contribution to another token
        (Kobayashi et al. 2020, "Attention is not only a weight").
        """
        norms: NDArray[np.float32] = np.linalg.norm(self.values[layer] @ self.output_projections[layer], axis=-1)
        return norms

    def select(self, row: int) -> AttentionMaps:
        """Return the maps of one text of the batch, without padding."""
        length = int(self.mask[row].sum())
        rows = slice(row, row + 1)
        return AttentionMaps(
            self.logits[rows],
            self.mask[rows, :length],
            self.queries[:, rows, :, :length],
            self.keys[:, rows, :, :length],
            self.values[:, rows, :, :length],
            self.output_projections,
        )


class AttentionMapRuntime:
    """Runs the CPU graph of a bundle for its logits and attention maps.

    Raises ValueError for a graph whose attention it cannot follow, such as a graph for GPUs.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        graph = read_graph(path)
        self._nodes = list(find_attention_nodes(graph))
        if not self._nodes:
            raise ValueError(f"{path.name} has no attention operator to compute maps from: use the bundle's CPU graph")
        self._output_projections = output_projections(graph, path.parent, [node.heads for node in self._nodes])
        names = [name for node in self._nodes for name in (node.queries, node.keys, node.values)]
        self._session: Any = open_session(path.read_bytes() + encode_outputs(names), path.parent, threads)
        # The graph's own first output. Newer graphs have a second one.
        self._outputs = [str(self._session.get_outputs()[0].name), *names]

    @property
    def layers(self) -> int:
        return len(self._nodes)

    @property
    def heads(self) -> int:
        """The number of heads of the layer with the fewest."""
        return min(node.heads for node in self._nodes)

    def run(self, batch: Batch) -> AttentionMaps:
        feeds = {"ids": batch.ids, "mask": batch.mask, "types": batch.token_types}
        logits, *states = self._session.run(self._outputs, feeds)
        heads = [node.heads for node in self._nodes for _ in range(3)]
        by_head = [split_heads(state, count) for state, count in zip(states, heads, strict=True)]
        queries, keys, values = (np.stack(by_head[first::3]) for first in range(3))
        return AttentionMaps(logits, batch.mask, queries, keys, values, self._output_projections)


def split_heads(state: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Reshape (batch, length, width) to (batch, heads, length, size)."""
    return state.reshape(*state.shape[:2], heads, -1).swapaxes(1, 2)


def find_attention_nodes(graph: memoryview) -> Iterator[AttentionNode]:
    """Yield the standard Attention operators in their order. The contrib operator takes no separate queries."""
    operator = "Attention"
    for node, heads in zip(find_nodes(graph, operator), find_attributes(graph, operator, "q_num_heads"), strict=False):
        inputs = [bytes(value).decode() for field, value in node if field == INPUT]
        yield AttentionNode(inputs[0], inputs[1], inputs[2], int(heads))


def output_projections(graph: memoryview, folder: Path, heads: Sequence[int]) -> NDArray[np.float32]:
    """Return each layer's attention output matrix, split by head, (layers, heads, size, width)."""
    tensors = read_constants(graph, folder)
    matrices = [dequantize_matrix(tensors, layer_names(layer).attention_output) for layer in range(len(heads))]
    return np.stack(
        [weight.reshape(count, -1, weight.shape[-1]) for weight, count in zip(matrices, heads, strict=True)]
    )
