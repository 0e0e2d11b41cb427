"""A durable catalogue on disk, edited by several processes at once and mapped by all of them.

SQLite stores everything except the vectors, which are rows of one file. A row is written and synced before the
transaction that refers to it commits. It belongs to one text for good, so a changed text gets a new row at the end.
Therefore a reader's mapping never changes, and the next edit overwrites a tail that no transaction refers to.
Compaction and a replacement of all vectors write a new file. This module knows neither models nor the web.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from models.catalogue import compaction, vector_file
from models.catalogue.compaction import MIN_DEAD_ROWS
from models.catalogue.database import (
    BUSY_S,
    SELECT_ALL_SQL,
    SELECT_SINCE_SQL,
    UPSERT_SQL,
    State,
    catalogue_errors,
    connect,
    read_state,
    require_regular_files,
    save_state,
    used_bytes,
)
from models.catalogue.errors import CatalogueError, CatalogueRemovedError, EditError, VectorsMissingError, check_digest
from models.catalogue.items import (
    MAX_ATTRIBUTES,
    MAX_NUMBER,
    CatalogueLimits,
    Content,
    EditResult,
    Item,
    Outcome,
    Vector,
    edit_outcome,
    is_popularity,
    stack_vectors,
)
from models.catalogue.snapshot import Change, Snapshot, empty_snapshot
from models.catalogue.vector_index import VectorIndex

FORMAT = 1
DATABASE = "items.sqlite"
FLOAT_BYTES = 4
_MAX_ATTEMPTS = 5


class Catalogue:
    """An open catalogue, made by `create_catalogue`.

    Any thread may use it. Its properties never block, its methods may. Edits keep the `limits`, if there are any.
    """

    def __init__(self, path: Path, limits: CatalogueLimits | None = None) -> None:
        self.path, self._limits = path, limits
        self._write_lock, self._read_lock, self._watch_lock = threading.Lock(), threading.Lock(), threading.Lock()
        self._seen: int | None = None
        self._snapshot: Snapshot | None = None
        self._database = str(path / DATABASE)
        self._inode = _inode(self._database)
        if self._inode is None:
            raise CatalogueRemovedError(f"there is no catalogue {path.name}")
        self._connections: list[sqlite3.Connection] = []
        try:
            with catalogue_errors(path.name):
                require_regular_files(path / DATABASE)
                for timeout_s in (BUSY_S, BUSY_S, 0.0):
                    self._connections.append(connect(path / DATABASE, timeout_s))
                self._writer, self._reader, self._watcher = self._connections
                (format_version,) = self._reader.execute("SELECT format FROM meta").fetchone()
            if format_version != FORMAT:
                raise CatalogueError(
                    f"catalogue {path.name}: its format is {format_version} and this Heed reads {FORMAT}; "
                    "use the Heed that wrote it"
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            for connection in self._connections:
                connection.close()

    @property
    def was_replaced(self) -> bool:
        """True if the folder on disk is gone or holds another catalogue."""
        return _inode(self._database) != self._inode

    @property
    def latest_snapshot(self) -> Snapshot | None:
        """The last result of `snapshot`, or None before the first."""
        return self._snapshot

    @property
    def has_changes(self) -> bool:
        """True if `snapshot` would return a new result. Takes microseconds."""
        return self._seen is None or self._data_version() != self._seen

    def snapshot(self) -> Snapshot:
        """Return the catalogue with every edit that was acknowledged before the call."""
        with self._read_lock, catalogue_errors(self.path.name):
            if self._snapshot is None or self.has_changes:
                seen = self._data_version()
                self._snapshot = self._load_snapshot(self._snapshot)
                self._seen = seen
            return self._snapshot

    def attach_index(self, file: str, index: VectorIndex) -> None:
        """Attach the index to the current and later snapshots of this vector file."""
        with self._read_lock:
            if self._snapshot is not None and self._snapshot.file == file and self._snapshot.rows >= index.rows:
                self._snapshot = replace(self._snapshot, index=index)

    def edit(
        self, digest: str, items: Sequence[Item], vectors: Mapping[str, Vector], removed: Sequence[str] = ()
    ) -> EditResult:
        """Add, change and remove items durably, all or none.

        `vectors` has the vectors of new texts by item ID, made by the model of `digest`. Raises VectorsMissingError if
        one is missing, OutdatedError if another model made those of the catalogue, EditError for invalid items, and
        CatalogueFullError if the catalogue would grow beyond its limits.
        """
        new = {item.item_id: item.content() for item in items}
        if len({*new, *removed}) < len(items) + len(removed):
            raise EditError("an item appears twice in one edit; list each item once")
        with self.write_transaction() as state:
            check_digest(self.path.name, state.digest, digest)
            size = self._size(state)
            stored = {item_id: record for item_id in (*new, *removed) if (record := self._stored_item(item_id))}
            rows = {item_id: row for item_id, (row, _) in stored.items()}
            old = {item_id: content for item_id, (_, content) in stored.items()}
            new_texts = [item_id for item_id in new if item_id not in old or old[item_id][0] != new[item_id][0]]
            changed = [item_id for item_id in new if old.get(item_id) != new[item_id]]
            gone = [item_id for item_id in removed if item_id in old]
            if changed or gone:
                self._append_vectors(new_texts, vectors, state)
                rows |= {item_id: state.rows + position for position, item_id in enumerate(new_texts)}
                version = state.version + 1
                records = [(item_id, rows[item_id], *new[item_id], version) for item_id in changed]
                self._writer.executemany(
                    UPSERT_SQL, [*records, *((item_id, None, "", "{}", 0.0, version) for item_id in gone)]
                )
                self._add_attribute_names({name for item in items for name in item.attributes})
                live = state.live + len(new.keys() - old.keys()) - len(gone)
                state = replace(state, version=version, rows=state.rows + len(new_texts), live=live)
                save_state(self._writer, state)
                if self._limits is not None and changed:  # to remove items is always possible
                    self._limits.check(self.path.name, size, self._size(state))
        outcomes: list[Outcome] = [edit_outcome(old.get(item_id), new[item_id]) for item_id in new]
        outcomes += ["removed" if item_id in old else "unchanged" for item_id in removed]
        return EditResult(tuple(outcomes), state.version, state.live)

    def delete(self, version: int | None = None) -> bool:
        """Delete the catalogue, if it is still of this version, and return whether it did.

        Without a version it is deleted in any case. A concurrent edit is deleted with it or refused.
        """
        with self.write_transaction() as state:
            if version is not None and state.version != version:
                return False
            trash = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=self.path.parent))
            self.path.rename(trash / self.path.name)
        shutil.rmtree(trash)
        return True

    def compact(self, min_dead_rows: int = MIN_DEAD_ROWS) -> bool:
        """Remove dead rows from the vectors if there are enough of them, and return whether it did."""
        return compaction.compact(self.path, self._writer, self.write_transaction(), min_dead_rows)

    def replace_vectors(self, digest: str, width: int, encoded: Mapping[str, tuple[str, Vector]]) -> None:
        """Replace all vectors by those of another model, named by its digest.

        `encoded` maps each item's ID to its text and the vector of that text. Raises VectorsMissingError for items that
        it lacks or lists with another text.
        """
        compaction.replace_vectors(self.path, self._writer, self.write_transaction(), (digest, width), encoded)

    @contextmanager
    def write_transaction(self) -> Iterator[State]:
        """Exclude all other writers, in any process, then commit durably, or roll back after an error."""
        with self._write_lock, catalogue_errors(self.path.name):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                if self.was_replaced:
                    raise CatalogueRemovedError(f"catalogue {self.path.name}: it was removed in the meantime")
                yield read_state(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def _append_vectors(self, ids: Sequence[str], vectors: Mapping[str, Vector], state: State) -> None:
        if missing := [item_id for item_id in ids if item_id not in vectors]:
            raise VectorsMissingError(missing)
        if ids:
            rows = stack_vectors([vectors[item_id] for item_id in ids], state.width)
            vector_file.append_vectors(self.path / state.file, state.rows, state.width, [rows])

    def _size(self, state: State) -> tuple[int, int]:
        """Return the items and the bytes of the catalogue, without vectors that no item has any more."""
        return state.live, used_bytes(self._writer) + state.live * state.width * FLOAT_BYTES

    def _stored_item(self, item_id: str) -> tuple[int, Content] | None:
        record = self._writer.execute(
            "SELECT place, text, attributes, popularity FROM items WHERE item_id = ? AND place IS NOT NULL", (item_id,)
        ).fetchone()
        return None if record is None else (record[0], (record[1], record[2], record[3]))

    def _add_attribute_names(self, names: Collection[str]) -> None:
        self._writer.executemany("INSERT OR IGNORE INTO names VALUES (?)", ((name,) for name in names))
        (count,) = self._writer.execute("SELECT count(*) FROM names").fetchone()
        if count > MAX_ATTRIBUTES:
            raise EditError(f"the items would have {count} different attributes; at most {MAX_ATTRIBUTES} are possible")

    def _data_version(self) -> int | None:
        try:
            with self._watch_lock:
                version: int = self._watcher.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error:  # another process is recovering from a crash, so the caller has to read the database
            return None
        return version

    def _load_snapshot(self, old: Snapshot | None) -> Snapshot:
        for _ in range(_MAX_ATTEMPTS):
            self._reader.execute("BEGIN")
            try:
                state = read_state(self._reader)
                base = (
                    old
                    if old is not None and old.file == state.file
                    else empty_snapshot(self.path.name, state.file, state.width)
                )
                records = (
                    self._reader.execute(SELECT_SINCE_SQL, (base.version,))
                    if base.rows
                    else self._reader.execute(SELECT_ALL_SQL)
                )
                changes = [self._change(*record) for record in records]
            finally:
                self._reader.execute("ROLLBACK")
            try:
                vectors = vector_file.map_vectors(self.path / state.file, state.rows, state.width)
            except FileNotFoundError:  # the vectors were rewritten since
                continue
            vector_file.check_vectors(vectors[base.rows :])
            return base.with_changes(changes, state.version, state.digest, vectors)
        raise CatalogueError(f"catalogue {self.path.name}: its vector file is missing; restore it from a backup")

    def _change(self, item_id: str, row: int | None, text: str, attributes: str, popularity: float) -> Change:
        """Return the change that a record holds. Raises CatalogueError for a number outside its range."""
        try:
            # Older versions stored larger numbers.
            change = Change(item_id, row, text, json.loads(attributes), min(popularity, float(MAX_NUMBER)))
            if not is_popularity(change.popularity):
                raise ValueError("its popularity is not from 0 to 2**53")
            if not all(isinstance(value, str) or abs(value) < math.inf for value in change.attributes.values()):
                raise ValueError("a number among its attributes is not finite")
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CatalogueError(
                f"catalogue {self.path.name}: item {item_id!r} cannot be read ({error}); "
                "remove the catalogue and add it again"
            ) from error
        return change


def _inode(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
