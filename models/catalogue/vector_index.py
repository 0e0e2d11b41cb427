"""An index for the vectors with the largest products with a user vector.

All user vectors of a model lie in one subspace. Coordinates in it are a third as long as the vectors and give the same
products. For very many vectors, an inverted file (Jégou et al. 2011) skips most of them. K-means divides the rows into
lists, and a search probes the lists whose centres have the largest products with the user vector. The share of lists to
probe is measured when the index is built, because some vectors do not divide well. If all lists are needed, the shorter
products are the only gain. Fewer vectors form one list, so nothing is missed.

An index covers the first rows of a vector file, which never change. Later rows are scored without it. It is one file
beside the vectors, in the safetensors format, and every ranking process maps it. A process that finds no index, or a
damaged one, ranks without it. This module does not know items.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from models.catalogue.top_k import top_k
from models.files import replace_atomically, require_regular

MIN_INDEX_ROWS = 10_000
"""Rows up to which a catalogue needs no index."""

MIN_INVERTED_ROWS = 100_000
"""Rows up to which an index has only one list."""

SUFFIX = ".index"
PROBE_SHARES = (8, 4, 2, 1)
"""A search probes one list of every N: the first N here that reaches MIN_RECALL, or else 1, which is all lists."""

MIN_RECALL = 0.95
_LIST_ROWS = 256
_SAMPLES_PER_LIST, _ITERATIONS = 64, 8
"""Training vectors per list and iterations of k-means."""

_RECALL_COUNT = 400
"""Length of the ranking on which recall is measured."""

_MAX_TAIL_SHARE = 0.1
_CHUNK_ROWS = 4_096
_ARRAY_NAMES = ("basis", "centres", "starts", "order", "coordinates")
_DTYPES = {"F32": "<f4", "I64": "<i8"}

Array = NDArray[np.float32]
Indices = NDArray[np.int64]


class DamagedIndexError(Exception):
    """The file is not an index, its checksum is wrong, or a number in it is not finite."""


@dataclass(frozen=True, slots=True, eq=False)
class VectorIndex:
    """An inverted file over the first rows of a vector file.

    `basis` (width, coordinates) is orthonormal and spans the user vectors. `centres` is (lists, coordinates). List i
    covers the positions `starts[i]` to `starts[i + 1]` of `order` (rows,), the row numbers, and of `coordinates` (rows,
    coordinates). A search probes one list of every `probes`, and `recall` is the share of the best rows it returns.
    """

    basis: Array
    centres: Array
    starts: Indices
    order: Indices
    coordinates: Array
    probes: int = 1
    recall: float = 1.0

    @property
    def rows(self) -> int:
        return len(self.order)

    @property
    def exact(self) -> bool:
        """True if a search probes all lists."""
        return self.probes == 1

    @property
    def probed_lists(self) -> int:
        """The number of lists that a search probes."""
        return -(-len(self.centres) // self.probes)

    def cost(self, rows: int) -> int:
        """Return the cost of a search among `rows` rows, in products with a whole vector."""
        width, coordinates = map(int, self.basis.shape)
        return (len(self.centres) + self.rows // self.probes) * coordinates // width + rows - self.rows

    def is_due(self, rows: int) -> bool:
        """Return whether too many of `rows` rows came after the index, so that a new one pays."""
        return rows - self.rows > _MAX_TAIL_SHARE * rows

    def search(
        self, user_vector: Array, vectors: Array, count: int, allowed: NDArray[np.bool_] | None
    ) -> Indices | None:
        """Return most of the `count` allowed rows of `vectors` (rows, width) with the largest products.

        A row is allowed unless `allowed` (rows,) is False there. Return None if the probed lists have too few allowed
        rows.
        """
        query = user_vector @ self.basis
        slices = [slice(None)]
        if not self.exact:
            probed = np.argpartition(-(self.centres @ query), self.probed_lists - 1)[: self.probed_lists]
            slices = [slice(self.starts[index], self.starts[index + 1]) for index in probed]
        later = np.arange(self.rows, len(vectors))
        rows = np.concatenate([*(self.order[span] for span in slices), later])
        scores = np.concatenate(
            [*(self.coordinates[span] @ query for span in slices), vectors[self.rows :] @ user_vector]
        )
        if allowed is not None:
            mask = allowed[rows]
            rows, scores = rows[mask], scores[mask]
        return rows[top_k(scores, count)] if len(rows) >= count else None


def default_list_rows(rows: int) -> int:
    """Return the average rows of a list: all up to MIN_INVERTED_ROWS rows, fewer beyond."""
    return rows if rows <= MIN_INVERTED_ROWS else _LIST_ROWS


def build_index(vectors: Array, basis: Array, user_vectors: Array, list_rows: int | None = None) -> VectorIndex:
    """Build an index of vectors (rows, width) for user vectors in the span of `basis`.

    `list_rows` is the average length of a list, `default_list_rows` if None. Recall is measured with `user_vectors`
    (users, width).
    """
    rows = len(vectors)
    if list_rows is None:
        list_rows = default_list_rows(rows)
    coordinates = np.concatenate(
        [vectors[start : start + _CHUNK_ROWS] @ basis for start in range(0, rows, _CHUNK_ROWS)]
    )
    centres = _fit_centres(coordinates, -(-rows // list_rows))
    nearest = _nearest_centres(coordinates, centres)
    order = np.argsort(nearest, kind="stable")
    starts = np.searchsorted(nearest[order], np.arange(len(centres) + 1))
    index = VectorIndex(np.ascontiguousarray(basis), centres, starts, order, coordinates[order])
    count = min(_RECALL_COUNT, rows)
    for probes in PROBE_SHARES if len(centres) > 1 else ():
        candidate = replace(index, probes=probes)
        recall = float(np.mean([_recall(candidate, index, user, vectors, count) for user in user_vectors]))
        if recall >= MIN_RECALL:
            return replace(candidate, recall=recall)
    return index


def load_or_build(
    folder: Path, file: str, vectors: Array, basis: Array, user_vectors: Array, list_rows: int | None = None
) -> VectorIndex:
    """Load the index of a vector file, or build and save it if there is none or it is due.

    One process builds it while the others wait. Raises OSError.
    """
    path = folder / f"{file}{SUFFIX}"
    with _exclusive_lock(folder):
        index = load_index(path)
        if index is not None and index.basis.shape == basis.shape and not index.is_due(len(vectors)):
            return index
        save_index(path, build_index(vectors, basis, user_vectors, list_rows))
        if not (folder / file).exists():  # the vectors were rewritten in the meantime
            path.unlink(missing_ok=True)
            raise FileNotFoundError(file)
        index = load_index(path)
    if index is None:
        raise FileNotFoundError(path.name)
    return index


def save_index(path: Path, index: VectorIndex) -> None:
    """Write an index durably and atomically. Raises OSError."""
    arrays = {name: np.ascontiguousarray(getattr(index, name)) for name in _ARRAY_NAMES}
    for stray in path.parent.glob(f".*{SUFFIX}*"):  # left by a crash
        stray.unlink(missing_ok=True)
    metadata = {"searched": str(index.probes), "recall": str(index.recall)}
    try:
        with replace_atomically(path, durable=True) as temporary:
            save_file(arrays, temporary, metadata | {"crc32": str(_checksum(arrays, metadata))})
    except SafetensorError as error:  # safetensors' form of an OSError
        raise OSError(str(error)) from error


def load_index(path: Path) -> VectorIndex | None:
    """Map an index, or return None if it is missing or damaged. Reads the whole file to verify its checksum."""
    try:
        return _map_index(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, DamagedIndexError):
        return None


def _map_index(path: Path) -> VectorIndex:
    require_regular(path)  # opening a FIFO would block
    content = np.memmap(path, np.uint8, "r").view(np.ndarray)
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(content[8:start].tobytes())
    arrays: dict[str, Any] = {}
    for name in _ARRAY_NAMES:
        tensor = header[name]
        begin, end = tensor["data_offsets"]
        arrays[name] = content[start + begin : start + end].view(_DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
    metadata = header["__metadata__"]
    if _checksum(arrays, metadata) != int(metadata["crc32"]):
        raise DamagedIndexError(path.name)
    for name in ("basis", "centres", "coordinates"):  # an index of vectors that were damaged has a right checksum
        if not np.isfinite(arrays[name]).all():
            raise DamagedIndexError(path.name)
    return VectorIndex(**arrays, probes=int(metadata["searched"]), recall=float(metadata["recall"]))


def _checksum(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> int:
    checksum = zlib.crc32(f"{metadata['searched']} {metadata['recall']}".encode())
    for name in _ARRAY_NAMES:
        checksum = zlib.crc32(str(arrays[name].shape).encode(), checksum)
        checksum = zlib.crc32(arrays[name].reshape(-1).view(np.uint8).data, checksum)
    return checksum


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    """Lock a folder against all other processes. The death of a process releases its lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _recall(candidate: VectorIndex, exhaustive: VectorIndex, user_vector: Array, vectors: Array, count: int) -> float:
    """Return the recall of an index against one that probes all lists."""
    near, exact = (index.search(user_vector, vectors, count, None) for index in (candidate, exhaustive))
    return 0.0 if near is None or exact is None else len(np.intersect1d(near, exact)) / count


def _fit_centres(coordinates: Array, lists: int) -> Array:
    """Fit centres by k-means on a sample. A centre without members moves to a random vector."""
    rng = np.random.default_rng(0)
    size = min(len(coordinates), _SAMPLES_PER_LIST * lists)
    sample = coordinates[np.sort(rng.choice(len(coordinates), size, replace=False))]
    centres = sample[rng.choice(len(sample), lists, replace=False)]
    for _ in range(_ITERATIONS):
        nearest = _nearest_centres(sample, centres)
        order = np.argsort(nearest, kind="stable")
        occupied, starts = np.unique(nearest[order], return_index=True)
        counts = np.diff(np.append(starts, len(sample)))
        centres = sample[rng.integers(0, len(sample), lists)]
        centres[occupied] = np.add.reduceat(sample[order], starts, axis=0) / counts[:, None].astype(np.float32)
    return centres


def _nearest_centres(coordinates: Array, centres: Array) -> Indices:
    """Return the index (rows,) of the centre nearest to each row."""
    half = np.einsum("ij,ij->i", centres, centres) / 2
    chunks = (coordinates[start : start + _CHUNK_ROWS] for start in range(0, len(coordinates), _CHUNK_ROWS))
    return np.concatenate([(chunk @ centres.T - half).argmax(axis=1) for chunk in chunks])
