"""What each token looks at, from the very graph that serves: its attention is worked out again from its own states.

ONNX Runtime fuses queries, keys and values to an answer and keeps no attention weights. But any value of a graph can
be asked for once it is an output, and the bytes of a protobuf message may be followed by more of it: outputs appended
to the served file give a graph of the same weights and arithmetic, and its softmax is taken here. So there is no second
file, the graph that answers is as fast as before, and a session with outputs is opened only by who asks for maps.
Knows how `models.graph` names weights; needs neither torch nor the onnx package.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.runtime_onnx import session_options
from models.tokens import Batch

GRAPH, NODES, INITIALIZERS, OUTPUTS = 7, 1, 5, 12
"""Numbers of fields: ModelProto.graph, and of GraphProto the three others."""

INPUT, OPERATOR, ATTRIBUTE = 1, 4, 5
"""Of NodeProto."""

ATTRIBUTE_NAME, ATTRIBUTE_INTEGER = 1, 3
DIMENSIONS, KIND, NAME, RAW = 1, 2, 8, 9
"""Of TensorProto."""

KINDS = {1: np.float32, 3: np.int8, 10: np.float16}
"""TensorProto.DataType to numpy, of the matrices that `models.graph` writes."""

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5
MIXING = "encoder.encoder.layer.{layer}.attention.output.dense"


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention operator of a graph: the names of its queries, keys and values, and its heads."""

    queries: str
    keys: str
    values: str
    heads: int


@dataclass(frozen=True, slots=True)
class Maps:
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

    def of(self, row: int) -> Maps:
        """One text of the batch alone, without padding."""
        length = int(self.mask[row].sum())
        own = slice(row, row + 1)
        return Maps(
            self.logits[own],
            self.mask[own, :length],
            self.queries[:, own, :, :length],
            self.keys[:, own, :, :length],
            self.values[:, own, :, :length],
            self.mixing,
        )


class MapRuntime:
    """Runs the CPU graph of a bundle for its logits and maps.

    Raises ValueError for a graph whose attention it cannot follow, such as that for GPUs.
    """

    def __init__(self, path: Path, threads: int = 1) -> None:
        model = path.read_bytes()
        graph = next(value for number, value in fields(memoryview(model)) if number == GRAPH)
        self._attentions = list(attentions(graph))
        if not self._attentions:
            raise ValueError(f"{path.name} has no attention that maps can be taken of")
        self._mixing = mixing(graph, [attention.heads for attention in self._attentions])
        self._names = [name for own in self._attentions for name in (own.queries, own.keys, own.values)]
        options = session_options(threads)
        # The word embeddings are in a file of their own, which a graph from memory would look for in vain.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        self._session: Any = onnxruntime.InferenceSession(
            model + with_outputs(self._names), options, providers=["CPUExecutionProvider"]
        )

    @property
    def layers(self) -> int:
        return len(self._attentions)

    @property
    def heads(self) -> int:
        """Of the layer that has fewest."""
        return min(attention.heads for attention in self._attentions)

    def run(self, batch: Batch) -> Maps:
        feeds = {"ids": batch.ids, "mask": batch.mask, "types": batch.types}
        logits, *states = self._session.run(None, feeds)
        heads = [attention.heads for attention in self._attentions for _ in range(3)]
        parts = [split(state, own) for state, own in zip(states, heads, strict=True)]
        queries, keys, values = (np.stack(parts[first::3]) for first in range(3))
        return Maps(logits, batch.mask, queries, keys, values, self._mixing)


def split(state: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """(batch, length, width) to (batch, heads, length, part)."""
    return state.reshape(*state.shape[:2], heads, -1).swapaxes(1, 2)


def with_outputs(names: Sequence[str]) -> bytes:
    """What to append to a ModelProto, so that its graph has these values as outputs too.

    A message that comes twice is merged, and its lists are joined (protobuf's encoding, "Last One Wins").
    """
    outputs = b"".join(field(OUTPUTS, field(1, name.encode())) for name in names)
    return field(GRAPH, outputs)


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value, a whole number or bytes, of each field of a protobuf message; ValueError when it is none."""
    place = 0
    while place < len(message):
        tag, place = read_varint(message, place)
        value: Any
        if tag & 7 == VARINT:
            value, place = read_varint(message, place)
        else:
            size, place = size_of(tag & 7, message, place)
            value = message[place : place + size]
            place += size
        yield tag >> 3, value


def size_of(wire: int, message: memoryview, place: int) -> tuple[int, int]:
    """How long a field's value is, and where it begins."""
    if wire == BYTES:
        return read_varint(message, place)
    if wire not in (FIXED_32, FIXED_64):
        raise ValueError(f"no protobuf message: a field of the wire type {wire}")
    return 4 if wire == FIXED_32 else 8, place


def read_varint(message: memoryview, place: int) -> tuple[int, int]:
    """The number at `place`, and where the next field begins."""
    value = shift = 0
    while True:
        byte = message[place]
        value |= (byte & 0x7F) << shift
        shift, place = shift + 7, place + 1
        if byte < 0x80:
            return value, place


def attentions(graph: memoryview) -> Iterator[Attention]:
    """The standard Attention operators in their order; the contrib one takes no separate queries."""
    for number, node in fields(graph):
        if number != NODES:
            continue
        found = list(fields(node))
        inputs = [bytes(value).decode() for part, value in found if part == INPUT]
        operator = next(bytes(value) for part, value in found if part == OPERATOR)
        attributes = [dict(fields(value)) for part, value in found if part == ATTRIBUTE]
        heads = [own[ATTRIBUTE_INTEGER] for own in attributes if bytes(own[ATTRIBUTE_NAME]) == b"q_num_heads"]
        if operator == b"Attention" and heads:
            yield Attention(inputs[0], inputs[1], inputs[2], heads[0])


def initializers(graph: memoryview) -> dict[str, list[tuple[int, Any]]]:
    """The fields of each, by its name."""
    tensors = {}
    for number, value in fields(graph):
        if number == INITIALIZERS:
            tensor = list(fields(value))
            name = next(bytes(part).decode() for own, part in tensor if own == NAME)
            tensors[name] = tensor
    return tensors


def read_tensor(tensor: Sequence[tuple[int, Any]]) -> NDArray[np.float32]:
    """An initializer whose values are in the graph itself, as `onnx.numpy_helper` writes them."""
    kind = next(value for number, value in tensor if number == KIND)
    raw = next(value for number, value in tensor if number == RAW)
    shape = [value for number, value in tensor if number == DIMENSIONS]
    return np.frombuffer(raw, KINDS[kind]).reshape(shape).astype(np.float32)


def mixing(graph: memoryview, heads: Sequence[int]) -> NDArray[np.float32]:
    """(layers, heads, part, width): of each layer the matrix that joins its heads, cut by head."""
    tensors = initializers(graph)
    found = []
    for layer, own in enumerate(heads):
        name = MIXING.format(layer=layer)
        if name in tensors:
            matrix = read_tensor(tensors[name])
        else:
            matrix = read_tensor(tensors[f"{name}.q"]) * read_tensor(tensors[f"{name}.scale"])
        found.append(matrix.reshape(own, -1, matrix.shape[-1]))
    return np.stack(found)
