"""The SQLite side of a catalogue: schema, connections, and the translation of SQLite's errors into catalogue errors."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from models.catalogue.errors import BusyError, CatalogueError, DiskFullError
from models.catalogue.vector_file import DamagedVectorsError
from models.files import require_regular

BUSY_S = 10.0
"""Seconds that a writer waits for other writers."""

# A removed item stays as a record without a place until the next compaction, so that readers learn of the removal.
SCHEMA_SQL = """
CREATE TABLE meta (
    format INTEGER, digest TEXT, width INTEGER, version INTEGER, file TEXT, rows INTEGER, live INTEGER
);
CREATE TABLE items (
    item_id TEXT PRIMARY KEY, place INTEGER, text TEXT, attributes TEXT, popularity REAL, version INTEGER
);
CREATE INDEX items_version ON items (version);
CREATE TABLE names (name TEXT PRIMARY KEY) WITHOUT ROWID;
"""
UPSERT_SQL = """
INSERT INTO items VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (item_id) DO UPDATE SET place = excluded.place,
    text = excluded.text, attributes = excluded.attributes, popularity = excluded.popularity, version = excluded.version
"""
SELECT_ALL_SQL = "SELECT item_id, place, text, attributes, popularity FROM items WHERE place IS NOT NULL ORDER BY place"
SELECT_SINCE_SQL = "SELECT item_id, place, text, attributes, popularity FROM items WHERE version > ?"
DISK_FULL_CODES = (
    "SQLITE_FULL",
    "SQLITE_IOERR_WRITE",
    "SQLITE_IOERR_FSYNC",
    "SQLITE_IOERR_TRUNCATE",
    "SQLITE_IOERR_SHMSIZE",
)


@dataclass(frozen=True, slots=True)
class State:
    """The state of a catalogue on disk. Its vector file has `rows` rows, and `live` of them belong to an item."""

    digest: str
    width: int
    version: int
    file: str
    rows: int
    live: int


def read_state(connection: sqlite3.Connection) -> State:
    columns = ", ".join(field.name for field in fields(State))
    return State(*connection.execute(f"SELECT {columns} FROM meta").fetchone())


def save_state(connection: sqlite3.Connection, state: State) -> None:
    assignments = ", ".join(f"{field.name} = :{field.name}" for field in fields(State))
    connection.execute(f"UPDATE meta SET {assignments}", asdict(state))


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return the bytes of the pages that hold something, with those of the open transaction."""
    pages, free, size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def require_regular_files(path: Path) -> None:
    """Raise NotRegularError if the database, or a file that SQLite keeps beside it, is no regular file."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            require_regular(path.with_name(path.name + suffix))


def connect(path: Path, timeout_s: float = BUSY_S, mode: str = "rw") -> sqlite3.Connection:
    connection = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode={mode}",
        uri=True,
        timeout=timeout_s,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute("PRAGMA synchronous=FULL")
    return connection


@contextmanager
def catalogue_errors(name: str) -> Iterator[None]:
    """Raise errors of SQLite and the disk as catalogue errors."""
    try:
        yield
    except sqlite3.Error as error:
        reason = getattr(error, "sqlite_errorname", "")
        if reason in DISK_FULL_CODES:
            raise DiskFullError(f"catalogue {name}: there is no room on its disk; free some and try again") from error
        if reason.startswith("SQLITE_BUSY"):
            raise BusyError(f"catalogue {name}: other processes keep writing to it; try again later") from error
        raise CatalogueError(f"catalogue {name}: it cannot be used ({error})") from error
    except DamagedVectorsError as error:
        raise CatalogueError(
            f"catalogue {name}: its vector file cannot be used ({error}); restore it from a backup"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise DiskFullError(f"catalogue {name}: there is no room on its disk; free some and try again") from error
        raise CatalogueError(f"catalogue {name}: it cannot be used ({error.strerror})") from error
