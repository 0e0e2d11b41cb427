"""Which of many vectors have the largest products with a taste, without whole products.

All tastes of a model lie in one subspace, so that coordinates in it, a third as long as vectors, give whole products.
Of very many vectors an inverted file (Jégou et al. 2011) leaves most out: k-means puts the rows into lists, and those
lists are looked through whose centres a taste likes most. How many is measured when the index is built, since there are
vectors that no lists divide well; when it is all of them, the shorter products remain. Fewer vectors are one list, so
that nothing is missed.

An index is of the first rows of a file of vectors, which never change; later rows are looked through as they are. It
is one file beside the vectors, in safetensors' format, mapped by all who rank. Whoever finds none, or a damaged one,
ranks without. Knows nothing of items.
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
from models.files import replace_atomically

MIN_INDEX_ROWS = 10_000
"""Rows up to which whole products are taken."""

MIN_INVERTED_ROWS = 100_000
"""Rows up to which an index is one list."""

SUFFIX = ".index"
PROBE_SHARES = (8, 4, 2, 1)
"""Of so many lists one is looked through: the first number by which RECALL of the best are found, or in the end all."""

RECALL = 0.95
_LIST_ROWS = 256
_SAMPLES, _ROUNDS = 64, 8
"""Of k-means: vectors of each list that it learns from, and how often it moves the centres."""

_MEASURED = 400
"""How many of the best are wanted when recall is measured."""

_TAIL_SHARE = 0.1
_CHUNK_ROWS = 4_096
_NAMES = ("basis", "centres", "starts", "order", "coordinates")
_KINDS = {"F32": "<f4", "I64": "<i8"}

Array = NDArray[np.float32]
Numbers = NDArray[np.int64]


class DamagedIndexError(Exception):
    """The file is no index, or not as it was written."""


@dataclass(frozen=True, slots=True, eq=False)
class VectorIndex:
    """`basis` (width, coordinates) is orthonormal and spans the tastes, `centres` (lists, coordinates).

    List i has the places `starts[i]` to `starts[i + 1]` of `order` (rows,), which are numbers of rows, and of
    `coordinates` (rows, coordinates). One list of `searched` is looked through, in which `recall` of the best by taste
    were found.
    """

    basis: Array
    centres: Array
    starts: Numbers
    order: Numbers
    coordinates: Array
    probes: int = 1
    recall: float = 1.0

    @property
    def rows(self) -> int:
        return len(self.order)

    @property
    def exact(self) -> bool:
        """Whether all lists are looked through."""
        return self.probes == 1

    @property
    def lists(self) -> int:
        """That are looked through."""
        return -(-len(self.centres) // self.probes)

    def cost(self, rows: int) -> int:
        """Of looking among so many rows, in products with a whole vector."""
        width, coordinates = map(int, self.basis.shape)
        return (len(self.centres) + self.rows // self.probes) * coordinates // width + rows - self.rows

    def is_due(self, rows: int) -> bool:
        """Whether an index of all of so many rows pays: too many came later."""
        return rows - self.rows > _TAIL_SHARE * rows

    def search(self, taste: Array, vectors: Array, wanted: int, allowed: NDArray[np.bool_] | None) -> Numbers | None:
        """Most of the `wanted` rows of `vectors` (rows, width) that have the largest products with the taste.

        None of them is one where `allowed` (rows,) is False; None where so few lists have too few that are allowed.
        """
        asked = taste @ self.basis
        parts = [slice(None)]
        if not self.exact:
            liked = np.argpartition(-(self.centres @ asked), self.lists - 1)[: self.lists]
            parts = [slice(self.starts[one], self.starts[one + 1]) for one in liked]
        later = np.arange(self.rows, len(vectors))
        rows = np.concatenate([*(self.order[part] for part in parts), later])
        scores = np.concatenate([*(self.coordinates[part] @ asked for part in parts), vectors[self.rows :] @ taste])
        if allowed is not None:
            kept = allowed[rows]
            rows, scores = rows[kept], scores[kept]
        return rows[top_k(scores, wanted)] if len(rows) >= wanted else None


def build_index(vectors: Array, basis: Array, tastes: Array, list_rows: int | None = None) -> VectorIndex:
    """Of vectors (rows, width), for tastes in the span of `basis`, with lists of so many rows on average.

    Without `list_rows`, rows up to DIVIDED are one list. Recall is measured with `tastes` (tastes, width).
    """
    rows = len(vectors)
    if list_rows is None:
        list_rows = rows if rows <= MIN_INVERTED_ROWS else _LIST_ROWS
    placed = np.concatenate([vectors[start : start + _CHUNK_ROWS] @ basis for start in range(0, rows, _CHUNK_ROWS)])
    centres = _centres(placed, -(-rows // list_rows))
    nearest = _nearest(placed, centres)
    order = np.argsort(nearest, kind="stable")
    starts = np.searchsorted(nearest[order], np.arange(len(centres) + 1))
    index = VectorIndex(np.ascontiguousarray(basis), centres, starts, order, placed[order])
    wanted = min(_MEASURED, rows)
    for searched in PROBE_SHARES if len(centres) > 1 else ():
        tried = replace(index, probes=searched)
        recall = float(np.mean([_found(tried, index, taste, vectors, wanted) for taste in tastes]))
        if recall >= RECALL:
            return replace(tried, recall=recall)
    return index


def load_or_build(
    folder: Path, file: str, vectors: Array, basis: Array, tastes: Array, list_rows: int | None = None
) -> VectorIndex:
    """The index of the vectors that `file` of a folder has, built and put beside it when there is none that will do.

    Of all processes one builds, and the others wait for it. Raises OSError.
    """
    path = folder / f"{file}{SUFFIX}"
    with _exclusive_lock(folder):
        found = load_index(path)
        if found is not None and found.basis.shape == basis.shape and not found.is_due(len(vectors)):
            return found
        save_index(path, build_index(vectors, basis, tastes, list_rows))
        if not (folder / file).exists():  # its vectors were written anew meanwhile
            path.unlink(missing_ok=True)
            raise FileNotFoundError(file)
        found = load_index(path)
    if found is None:
        raise FileNotFoundError(path.name)
    return found


def save_index(path: Path, index: VectorIndex) -> None:
    """Durably, whole or not at all; raises OSError."""
    arrays = {name: np.ascontiguousarray(getattr(index, name)) for name in _NAMES}
    for stray in path.parent.glob(f".*{SUFFIX}*"):  # of a crash
        stray.unlink(missing_ok=True)
    told = {"searched": str(index.probes), "recall": str(index.recall)}
    try:
        with replace_atomically(path, durable=True) as part:
            save_file(arrays, part, told | {"crc32": str(_sum(arrays, told))})
    except SafetensorError as error:  # what the disk refused
        raise OSError(str(error)) from error


def load_index(path: Path) -> VectorIndex | None:
    """Mapped; None when there is none, or a damaged one. Reads all of it, to know."""
    try:
        return _mapped(path)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, DamagedIndexError):
        return None


def _mapped(path: Path) -> VectorIndex:
    whole = np.memmap(path, np.uint8, "r").view(np.ndarray)
    start = 8 + int.from_bytes(whole[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(whole[8:start].tobytes())
    arrays: dict[str, Any] = {}
    for name in _NAMES:
        told = header[name]
        begin, end = told["data_offsets"]
        arrays[name] = whole[start + begin : start + end].view(_KINDS[told["dtype"]]).reshape(told["shape"])
    told = header["__metadata__"]
    if _sum(arrays, told) != int(told["crc32"]):
        raise DamagedIndexError(path.name)
    return VectorIndex(**arrays, probes=int(told["searched"]), recall=float(told["recall"]))


def _sum(arrays: Mapping[str, NDArray[Any]], told: Mapping[str, str]) -> int:
    found = zlib.crc32(f"{told['searched']} {told['recall']}".encode())
    for name in _NAMES:
        found = zlib.crc32(str(arrays[name].shape).encode(), found)
        found = zlib.crc32(arrays[name].reshape(-1).view(np.uint8).data, found)
    return found


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    """Among all processes; a killed one lets the next in."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _found(tried: VectorIndex, whole: VectorIndex, taste: Array, vectors: Array, wanted: int) -> float:
    """Recall of an index beside one that looks through all lists."""
    near, exact = (index.search(taste, vectors, wanted, None) for index in (tried, whole))
    return 0.0 if near is None or exact is None else len(np.intersect1d(near, exact)) / wanted


def _centres(placed: Array, lists: int) -> Array:
    """By k-means on a sample; a centre that nothing is near to moves to a vector."""
    rng = np.random.default_rng(0)
    sample = placed[np.sort(rng.choice(len(placed), min(len(placed), _SAMPLES * lists), replace=False))]
    centres = sample[rng.choice(len(sample), lists, replace=False)]
    for _ in range(_ROUNDS):
        nearest = _nearest(sample, centres)
        order = np.argsort(nearest, kind="stable")
        taken, starts = np.unique(nearest[order], return_index=True)
        counts = np.diff(np.append(starts, len(sample)))
        centres = sample[rng.integers(0, len(sample), lists)]
        centres[taken] = np.add.reduceat(sample[order], starts, axis=0) / counts[:, None].astype(np.float32)
    return centres


def _nearest(placed: Array, centres: Array) -> Numbers:
    """(placed,) the centre that is nearest to each."""
    half = np.einsum("ij,ij->i", centres, centres) / 2
    chunks = (placed[start : start + _CHUNK_ROWS] for start in range(0, len(placed), _CHUNK_ROWS))
    return np.concatenate([(chunk @ centres.T - half).argmax(axis=1) for chunk in chunks])
