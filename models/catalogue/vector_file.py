"""Vectors as rows of float32 in a file: written at the end and synced, mapped by readers. Knows nothing of items."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_KIND = np.dtype("<f4")


class TruncatedFileError(Exception):
    """The file ends before the rows that it should have."""


def append_vectors(path: Path, start: int, width: int, chunks: Iterable[NDArray[np.float32]]) -> int:
    """Write rows (any, width) from row `start` on, whatever was there, and sync; how many there were.

    Raises OSError, after giving back what room it took.
    """
    offset = begin = start * width * _KIND.itemsize
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        for chunk in chunks:
            left = np.ascontiguousarray(chunk, _KIND).reshape(-1).view(np.uint8).data
            while left:  # a disk that fills takes a part first
                written = os.pwrite(file, left, offset)
                offset, left = offset + written, left[written:]
        os.fsync(file)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(file, begin)
        raise
    finally:
        os.close(file)
    return (offset - begin) // (width * _KIND.itemsize)


def map_vectors(path: Path, rows: int, width: int) -> NDArray[np.float32]:
    """(rows, width), read-only; raises FileNotFoundError or CutShortError."""
    if rows == 0:
        return np.empty((0, width), np.float32)
    try:
        return np.memmap(path, _KIND, "r", shape=(rows, width)).view(np.ndarray)
    except ValueError:
        raise TruncatedFileError(path.name) from None
