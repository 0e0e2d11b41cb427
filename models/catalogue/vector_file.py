"""A file of vectors as rows of float32. Writers append and sync, and readers map it. It does not know items."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.files import require_regular
from models.prediction.ranges import RangeError, check_array

_CHUNK_ROWS = 4_096
_DTYPE = np.dtype("<f4")


class DamagedVectorsError(Exception):
    """A file of vectors that must not be used. The message says what is wrong with it."""


def append_vectors(path: Path, start: int, width: int, chunks: Iterable[NDArray[np.float32]]) -> int:
    """Write and sync chunks of vectors (rows, width) from row `start` on, and return the number of rows.

    Rows that the file has there are overwritten. Raises OSError, after freeing the space that the write took.
    """
    with suppress(FileNotFoundError):
        require_regular(path)
    offset = begin = start * width * _DTYPE.itemsize
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        for chunk in chunks:
            remaining = np.ascontiguousarray(chunk, _DTYPE).reshape(-1).view(np.uint8).data
            while remaining:  # a disk that is filling up writes less than asked before it fails
                written = os.pwrite(file, remaining, offset)
                offset, remaining = offset + written, remaining[written:]
        os.fsync(file)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(file, begin)
        raise
    finally:
        os.close(file)
    return (offset - begin) // (width * _DTYPE.itemsize)


def map_vectors(path: Path, rows: int, width: int) -> NDArray[np.float32]:
    """Map the first rows of a file, read-only, as (rows, width). Raises OSError or DamagedVectorsError."""
    if rows == 0:
        return np.empty((0, width), np.float32)
    require_regular(path)  # opening a FIFO would block
    try:
        return np.memmap(path, _DTYPE, "r", shape=(rows, width)).view(np.ndarray)
    except ValueError:
        raise DamagedVectorsError("it is cut short") from None


def check_vectors(vectors: NDArray[np.float32]) -> None:
    """Raise DamagedVectorsError unless all numbers of vectors (rows, width) are finite and in the range of weights."""
    try:
        for start in range(0, len(vectors), _CHUNK_ROWS):
            check_array("rows", vectors[start : start + _CHUNK_ROWS])
    except RangeError as error:
        raise DamagedVectorsError(str(error)) from None
