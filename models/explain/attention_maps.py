"""What each token looks at, from the very graph that serves: its attention is worked out again from its own states.

ONNX Runtime fuses queries, keys and values to an answer and keeps no attention weights. But any value of a graph can
be asked for once it is an output, and the bytes of a protobuf message may be followed by more of it: outputs appended
to the served file give a graph of the same weights and arithmetic, and its softmax is taken here. So there is no second
file, the graph that answers is as fast as before, and a session with outputs is opened only by who asks for maps.
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
class Attention:
    """One attention operator of a graph: the names of its queries, keys and values, and its heads."""

    queries: str
    keys: str
    values: str
    heads: int


@dataclass(frozen=True, slots=True)
class AttentionMaps:
    """The answers to a batch and what its attention came from; maps are made when they are asked for, layer by layer.

    `logits` (batch, labels), `mask` (batch, length); `queries`, `keys` and `values` (layers, batch, heads, length,
    part); `mixing` (layers, heads, part, width), by which each head's result goes into the hidden state.
    """

    logits: NDArray[np.float32]
    mask: NDArray[np.int64]
    queries: NDArray[np.float32]
    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    mixing: NDArray[np.float32]

    @property
    def layers(self) -> int:
        return len(self.queries)

    def attention(self, layer: int) -> NDArray[np.float32]:
        """(batch, heads, length, length): how much each token (row) takes from each (column); padding gives nothing."""
        queries, keys = self.queries[layer], self.keys[layer]
        scores = queries @ keys.swapaxes(-1, -2) / np.sqrt(queries.shape[-1], dtype=np.float32)
        scores = np.where(self.mask[:, None, None, :] > 0, scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights: NDArray[np.float32] = shares / shares.sum(axis=-1, keepdims=True)
        return weights

    def value_norms(self, layer: int) -> NDArray[np.float32]:
        """(batch, heads, length): how long the vector is that each token gives through each head, before attention.

        Attention times it is what the token adds to another (Kobayashi et al. 2020, "Attention is not only a weight").
        """
        norms: NDArray[np.float32] = np.linalg.norm(self.values[layer] @ self.mixing[layer], axis=-1)
        return norms

    def of(self, row: int) -> AttentionMaps:
        """One text of the batch alone, without padding."""
        length = int(self.mask[row].sum())
        own = slice(row, row + 1)
        return AttentionMaps(
            self.logits[own],
            self.mask[own, :length],
            self.queries[:, own, :, :length],
            self.keys[:, own, :, :length],
            self.values[:, own, :, :length],
            self.mixing,
        )


class AttentionMapRuntime:
    """Runs the CPU graph of a bundle for its logits and maps.

    Raises ValueError for a graph whose attention it cannot follow, such as that for GPUs.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        graph = read_graph(path)
        self._attentions = list(find_attention_nodes(graph))
        if not self._attentions:
            raise ValueError(f"{path.name} has no attention that maps can be taken of")
        self._mixing = output_projections(graph, path.parent, [attention.heads for attention in self._attentions])
        self._names = [name for own in self._attentions for name in (own.queries, own.keys, own.values)]
        self._session: Any = open_session(path.read_bytes() + encode_outputs(self._names), path.parent, threads)

    @property
    def layers(self) -> int:
        return len(self._attentions)

    @property
    def heads(self) -> int:
        """Of the layer that has fewest."""
        return min(attention.heads for attention in self._attentions)

    def run(self, batch: Batch) -> AttentionMaps:
        feeds = {"ids": batch.ids, "mask": batch.mask, "types": batch.token_types}
        logits, *states = self._session.run(None, feeds)
        heads = [attention.heads for attention in self._attentions for _ in range(3)]
        parts = [split(state, own) for state, own in zip(states, heads, strict=True)]
        queries, keys, values = (np.stack(parts[first::3]) for first in range(3))
        return AttentionMaps(logits, batch.mask, queries, keys, values, self._mixing)


def split(state: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """(batch, length, width) to (batch, heads, length, part)."""
    return state.reshape(*state.shape[:2], heads, -1).swapaxes(1, 2)


def find_attention_nodes(graph: memoryview) -> Iterator[Attention]:
    """The standard Attention operators in their order; the contrib one takes no separate queries."""
    operator = "Attention"
    for node, heads in zip(find_nodes(graph, operator), find_attributes(graph, operator, "q_num_heads"), strict=False):
        inputs = [bytes(value).decode() for part, value in node if part == INPUT]
        yield Attention(inputs[0], inputs[1], inputs[2], int(heads))


def output_projections(graph: memoryview, folder: Path, heads: Sequence[int]) -> NDArray[np.float32]:
    """(layers, heads, part, width): of each layer the matrix that joins its heads, cut by head."""
    tensors = read_constants(graph, folder)
    found = [dequantize_matrix(tensors, layer_names(layer).attention_output) for layer in range(len(heads))]
    return np.stack([own.reshape(count, -1, own.shape[-1]) for own, count in zip(found, heads, strict=True)])
