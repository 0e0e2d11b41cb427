"""Files that are there whole or not at all. Knows nothing of what they hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_atomically(path: Path, durable: bool = False) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end; when the writing fails it is gone.

    It is hidden, of another ending, so that nobody takes it for the file. With `durable` what was written outlives a
    power cut.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        if durable:
            with part.open("rb") as written:
                os.fsync(written.fileno())
        part.replace(path)
        if durable:
            sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make the names in a folder outlive a power cut too."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
