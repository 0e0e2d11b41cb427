"""Reading an ONNX file, and adding outputs to it, without the onnx package.

An ONNX file is a protobuf message of nodes and constants. Serving needs little of it, so it does without that package.
Knows the numbers of the needed fields (onnx.proto), not the meaning of any graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRAPH, NODES, INITIALIZERS, OUTPUTS = 7, 1, 5, 12
"""Numbers of fields: ModelProto.graph, and three fields of GraphProto."""

INPUT, OPERATOR, ATTRIBUTE = 1, 4, 5
"""Fields of NodeProto."""

ATTRIBUTE_NAME, FLOAT, INTEGER = 1, 2, 3
"""Fields of AttributeProto."""

DIMENSIONS, KIND, NAME, RAW, EXTERNAL = 1, 2, 8, 9, 13
"""Fields of TensorProto."""

KEY, VALUE = 1, 2
"""Fields of StringStringEntryProto, in which TensorProto names the file of its values."""

KINDS: dict[int, type[np.number]] = {1: np.float32, 3: np.int8, 10: np.float16}
"""TensorProto.DataType to numpy, for the matrices that `models.graph.builder` writes."""

VARINT, FIXED_64, BYTES, FIXED_32 = 0, 1, 2, 5


def encode_outputs(names: Sequence[str]) -> bytes:
    """Return the bytes that, appended to a ModelProto, make these values outputs of its graph.

    Protobuf merges a message that appears twice, and joins its lists (encoding, "Last One Wins").
    """
    outputs = b"".join(encode_field(OUTPUTS, encode_field(1, name.encode())) for name in names)
    return encode_field(GRAPH, outputs)


def encode_field(number: int, value: bytes) -> bytes:
    return encode_varint(number << 3 | BYTES) + encode_varint(len(value)) + value


def encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def read_fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value, an integer or bytes, of each field of a protobuf message.

    Raises:
        ValueError: The bytes are no protobuf message.
    """
    position = 0
    while position < len(message):
        tag, position = read_varint(message, position)
        value: Any
        if tag & 7 == VARINT:
            value, position = read_varint(message, position)
        else:
            size, position = read_field_size(tag & 7, message, position)
            value = message[position : position + size]
            position += size
        yield tag >> 3, value


def read_field_size(wire: int, message: memoryview, position: int) -> tuple[int, int]:
    """Return the size of a field's value, and the position where it begins."""
    if wire == BYTES:
        return read_varint(message, position)
    if wire not in (FIXED_32, FIXED_64):
        raise ValueError(f"no protobuf message: a field of the wire type {wire}")
    return 4 if wire == FIXED_32 else 8, position


def read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the number at `position`, and the position after it."""
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        shift, position = shift + 7, position + 1
        if byte < 0x80:
            return value, position


def read_graph(path: Path) -> memoryview:
    """Return the GraphProto of a model's file."""
    return next(value for number, value in read_fields(memoryview(path.read_bytes())) if number == GRAPH)


def find_nodes(graph: memoryview, operator: str) -> Iterator[list[tuple[int, Any]]]:
    """Yield the fields of each node of an operator, in order."""
    for number, value in read_fields(graph):
        if number == NODES and (OPERATOR, operator.encode()) in (node := list(read_fields(value))):
            yield node


def find_attributes(graph: memoryview, operator: str, name: str) -> Iterator[float]:
    """Yield the number that each node of an operator has as an attribute."""
    for node in find_nodes(graph, operator):
        for number, value in node:
            if number == ATTRIBUTE and (attribute := dict(read_fields(value)))[ATTRIBUTE_NAME] == name.encode():
                if INTEGER in attribute:
                    yield attribute[INTEGER]
                else:
                    yield float(np.frombuffer(attribute[FLOAT], np.float32)[0])


def read_initializers(graph: memoryview) -> dict[str, list[tuple[int, Any]]]:
    """Return the fields of each initializer by its name."""
    tensors = {}
    for number, value in read_fields(graph):
        if number == INITIALIZERS:
            tensor = list(read_fields(value))
            name = next(bytes(content).decode() for field, content in tensor if field == NAME)
            tensors[name] = tensor
    return tensors


def read_constants(graph: memoryview, folder: Path) -> dict[str, NDArray[Any]]:
    """Return the initializers of KINDS by name, as stored; values in another file of `folder` are memory-mapped."""
    constants = {}
    for name, tensor in read_initializers(graph).items():
        if (kind := KINDS.get(next(value for number, value in tensor if number == KIND))) is not None:
            shape = [value for number, value in tensor if number == DIMENSIONS]
            constants[name] = read_tensor(tensor, folder, kind).reshape(shape)
    return constants


def read_tensor(tensor: Sequence[tuple[int, Any]], folder: Path, kind: type[np.number]) -> NDArray[Any]:
    raw = next((value for number, value in tensor if number == RAW), None)
    if raw is not None:
        return np.frombuffer(raw, kind)
    entries = (dict(read_fields(value)) for number, value in tensor if number == EXTERNAL)
    external = {bytes(entry[KEY]).decode(): bytes(entry[VALUE]).decode() for entry in entries}
    return np.memmap(folder / external["location"], kind, "r")
