"""Things that are no regular files, under names of files that a service reads."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

ODD_FILES = ("fifo", "socket", "device", "folder", "link to a fifo")


def make_odd(kind: str, path: Path) -> None:
    """Make a thing of this kind at the path. A device is a link to one, which needs no rights."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        _bind(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path.with_name("a fifo"))
        path.symlink_to("a fifo")


def _bind(path: Path) -> None:
    """Leave the file of a socket. Its path may be longer than a socket's address, so a short link leads to it."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        link = Path(folder) / "l"
        link.symlink_to(path.parent)
        listener.bind(str(link / path.name))
