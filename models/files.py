"""Files written atomically, and read only if they are regular files. Knows nothing of their content."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NotRegularError(OSError):
    """A FIFO, socket, device or folder where a file should be. To open one may block for good."""

    def __init__(self, path: Path) -> None:
        super().__init__(errno.EINVAL, f"{path.name} is not a regular file")


class FileTooLargeError(OSError):
    """A file larger than its reader allows."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        super().__init__(errno.EFBIG, f"{path.name} is larger than the limit of {max_bytes:,} bytes")


def require_regular(path: Path) -> None:
    """Raise NotRegularError unless the path is a regular file, or a link to one. A missing file raises OSError."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise NotRegularError(path)


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file. Never blocks. Raises OSError."""
    require_regular(path)  # before it is opened, because opening a device may have an effect
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise NotRegularError(path)
        if status.st_size > max_bytes:
            raise FileTooLargeError(path, max_bytes)
        return file.read(status.st_size)


@contextmanager
def replace_atomically(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` at the end, or is removed if the block raises.

    The temporary file is hidden and has another suffix, so that nobody reads it as the file. With `durable` the content
    survives a power cut.
    """
    temporary = path.with_name(f".{path.name}.part")
    if temporary.exists() and not temporary.is_file():  # to write to a FIFO would block
        temporary.unlink()
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
