"""An ONNX file read, and given more outputs, without the onnx package: a protobuf message of nodes and constants.

Serving does without that package, and what is asked of the file is little. Knows the numbers of the fields that are
needed (onnx.proto), not what any graph means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRAPH, NODES, INITIALIZERS, OUTPUTS = 7, 1, 5, 12
"""Numbers of fields: ModelProto.graph, and of GraphProto the three others."""

INPUT, OPERATOR, ATTRIBUTE = 1, 4, 5
"""Of NodeProto."""

ATTRIBUTE_NAME, FLOAT, INTEGER = 1, 2, 3
"""Of AttributeProto."""

DIMENSIONS, KIND, NAME, RAW, EXTERNAL = 1, 2, 8, 9, 13
"""Of TensorProto."""

KEY, VALUE = 1, 2
"""Of StringStringEntryProto, in which TensorProto says where else its values are."""

KINDS: dict[int, type[np.number]] = {1: np.float32, 3: np.int8, 10: np.float16}
"""TensorProto.DataType to numpy, of the matrices that `models.graph.builder` writes."""

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5


def with_outputs(names: Sequence[str]) -> bytes:
    """What to append to a ModelProto, so that its graph has these values as outputs too.

    A message that comes twice is merged, and its lists are joined (protobuf's encoding, "Last One Wins").
    """
    outputs = b"".join(encode_field(OUTPUTS, encode_field(1, name.encode())) for name in names)
    return encode_field(GRAPH, outputs)


def encode_field(number: int, value: bytes) -> bytes:
    return encode_varint(number << 3 | BYTES) + encode_varint(len(value)) + value


def encode_varint(value: int) -> bytes:
    written = bytearray()
    while value > 0x7F:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*written, value])


def read_fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value, a whole number or bytes, of each field of a protobuf message; ValueError when it is none."""
    place = 0
    while place < len(message):
        tag, place = read_varint(message, place)
        value: Any
        if tag & 7 == VARINT:
            value, place = read_varint(message, place)
        else:
            size, place = field_size(tag & 7, message, place)
            value = message[place : place + size]
            place += size
        yield tag >> 3, value


def field_size(wire: int, message: memoryview, place: int) -> tuple[int, int]:
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


def read_graph(path: Path) -> memoryview:
    """The GraphProto of a model's file."""
    return next(value for number, value in read_fields(memoryview(path.read_bytes())) if number == GRAPH)


def find_nodes(graph: memoryview, operator: str) -> Iterator[list[tuple[int, Any]]]:
    """The fields of each node of this operator, in their order."""
    for number, value in read_fields(graph):
        if number == NODES and (OPERATOR, operator.encode()) in (node := list(read_fields(value))):
            yield node


def find_attributes(graph: memoryview, operator: str, name: str) -> Iterator[float]:
    """The number that each node of this operator has as this attribute."""
    for node in find_nodes(graph, operator):
        for number, value in node:
            if number == ATTRIBUTE and (own := dict(read_fields(value)))[ATTRIBUTE_NAME] == name.encode():
                yield own[INTEGER] if INTEGER in own else float(np.frombuffer(own[FLOAT], np.float32)[0])


def read_initializers(graph: memoryview) -> dict[str, list[tuple[int, Any]]]:
    """The fields of each, by its name."""
    tensors = {}
    for number, value in read_fields(graph):
        if number == INITIALIZERS:
            tensor = list(read_fields(value))
            name = next(bytes(part).decode() for own, part in tensor if own == NAME)
            tensors[name] = tensor
    return tensors


def read_constants(graph: memoryview, folder: Path) -> dict[str, NDArray[Any]]:
    """The initializers of KINDS by name, as they are stored; what lies in another file, in `folder`, is mapped."""
    found = {}
    for name, tensor in read_initializers(graph).items():
        if (kind := KINDS.get(next(value for number, value in tensor if number == KIND))) is not None:
            shape = [value for number, value in tensor if number == DIMENSIONS]
            found[name] = read_tensor(tensor, folder, kind).reshape(shape)
    return found


def read_tensor(tensor: Sequence[tuple[int, Any]], folder: Path, kind: type[np.number]) -> NDArray[Any]:
    raw = next((value for number, value in tensor if number == RAW), None)
    if raw is not None:
        return np.frombuffer(raw, kind)
    entries = (dict(read_fields(value)) for number, value in tensor if number == EXTERNAL)
    place = {bytes(entry[KEY]).decode(): bytes(entry[VALUE]).decode() for entry in entries}
    return np.memmap(folder / place["location"], kind, "r")
