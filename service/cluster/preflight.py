"""Checks before a start that would otherwise fail later, far from its cause: the port, the data folder, open files.

This module knows the machine, and neither Ray nor the models.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import tempfile
from pathlib import Path

_OTHER_FILES = 64  # HAProxy's listeners, checks and logs; 25 were counted

_OTHER_PORT = "choose another port with --port or HEED_PORT"
_OTHER_HOST = "choose an address of this machine with --host or HEED_HOST"


class ClusterError(Exception):
    """The service cannot start, or ended unexpectedly. The message is one line."""


def check_port_is_free(host: str, port: int) -> None:
    """Raise ClusterError if the port cannot be used, before a start that would fail much later and far from here."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except TypeError:  # Python cannot encode it
            raise ClusterError(f"cannot listen on {host!r}: this is no name of a machine; {_OTHER_HOST}") from None
        except OSError as error:
            advice = _OTHER_PORT if error.errno in (errno.EADDRINUSE, errno.EACCES) else _OTHER_HOST
            raise ClusterError(f"cannot listen on {host}:{port}: {error.strerror or error}; {advice}") from None


def check_data_dir(folder: Path, *subfolders: str) -> None:
    """Raise ClusterError if heads, reply sets and catalogues could not be stored in the folder and these in it."""
    for path in (folder, *(folder / name for name in subfolders)):
        if fault := _folder_fault(path):
            raise ClusterError(f"HEED_DATA_DIR={folder}: {fault}; choose another folder, or none to serve without one")


def _folder_fault(folder: Path) -> str:
    """Return why files cannot be kept in the folder, which need not exist yet, or an empty string."""
    try:
        existing = next(path for path in (folder, *folder.parents) if _is_there(path))
        if not existing.exists():
            return f"{existing} links to nothing"
        if not existing.is_dir():
            return f"{existing} is not a folder"
        if existing == folder:
            os.listdir(folder)
        with tempfile.TemporaryFile(dir=existing):
            return ""
    except PermissionError:
        return f"the folder is not writable by this user ({folder})"
    except OSError as error:
        return f"the folder is not writable ({folder}: {error.strerror or error})"


def _is_there(path: Path) -> bool:
    """Return whether the path exists, be it as a link to nothing. Raises OSError for an impossible path."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def check_open_files(connections: int) -> None:
    """Raise ClusterError if this process may not have as many open files as HAProxy needs for its connections.

    HAProxy counts two for each connection, and a pipe for every fourth. A process that may raise its limit does.
    """
    needed = 5 * connections // 2 + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, needed))
    except (ValueError, OSError):
        raise ClusterError(
            f"a process may have {hard:,} open files here, and HAProxy needs {needed:,}; raise the hard limit "
            f"(ulimit -Hn {needed}, LimitNOFILE={needed} in systemd, --ulimit nofile={needed} in docker)"
        ) from None
