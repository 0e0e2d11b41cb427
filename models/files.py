"""Files written atomically. Knows nothing of their content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replace_atomically(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` at the end, or is removed if the block raises.

    The temporary file is hidden and has another suffix, so that nobody reads it as the file. With `durable` the content
    survives a power cut.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Flush the names in a folder to disk, so that they survive a power cut."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
