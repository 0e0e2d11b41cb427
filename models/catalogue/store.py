"""A catalogue on disk: items that outlive a crash, edited by several processes at once and mapped by all of them.

What is durable is in SQLite, but for the vectors, which are rows of one file. A row is written and synced before the
transaction that names it commits, and belongs to one text for good: a changed text gets a new row at the end. So what a
reader has mapped never changes under it, and a tail that no transaction names is overwritten by the next edit.
Compaction, and new vectors for all, make a new file. Knows nothing of models or of the web.
"""

from __future__ import annotations

import json
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
    save_state,
)
from models.catalogue.errors import CatalogueError, CatalogueRemovedError, EditError, VectorsMissingError, check_digest
from models.catalogue.items import MAX_ATTRIBUTES, Content, EditResult, Item, Outcome, Vector, edit_outcome, stacked
from models.catalogue.snapshot import Change, Snapshot, empty_snapshot
from models.catalogue.vector_index import VectorIndex

FORMAT = 1
DATABASE = "items.sqlite"
_TRIES = 5


class Catalogue:
    """Opens what `create` made. Called from any thread; properties never block, methods may."""

    def __init__(self, path: Path) -> None:
        self.path = path
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
                for patience_s in (BUSY_S, BUSY_S, 0.0):
                    self._connections.append(connect(path / DATABASE, patience_s))
                self._writer, self._reader, self._watcher = self._connections
                (found,) = self._reader.execute("SELECT format FROM meta").fetchone()
            if found != FORMAT:
                raise CatalogueError(f"catalogue {path.name}: format {found} is not {FORMAT}, the one this Heed reads")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            for connection in self._connections:
                connection.close()

    @property
    def was_replaced(self) -> bool:
        """Whether its place on disk is empty now, or another's."""
        return _inode(self._database) != self._inode

    @property
    def latest_snapshot(self) -> Snapshot | None:
        """The newest that `snapshot` gave."""
        return self._snapshot

    @property
    def has_changes(self) -> bool:
        """Whether `snapshot` would be another than the last; takes microseconds."""
        return self._seen is None or self._data_version() != self._seen

    def snapshot(self) -> Snapshot:
        """With every edit that was acknowledged before the call."""
        with self._read_lock, catalogue_errors(self.path.name):
            if self._snapshot is None or self.has_changes:
                seen = self._data_version()
                self._snapshot = self._load_snapshot(self._snapshot)
                self._seen = seen
            return self._snapshot

    def attach_index(self, file: str, index: VectorIndex) -> None:
        """Snapshots whose vectors are of this file have the index from now on."""
        with self._read_lock:
            if self._snapshot is not None and self._snapshot.file == file and self._snapshot.rows >= index.rows:
                self._snapshot = replace(self._snapshot, index=index)

    def edit(
        self, digest: str, entries: Sequence[Item], vectors: Mapping[str, Vector], removed: Sequence[str] = ()
    ) -> EditResult:
        """Add, change and remove items: all of it durably, or nothing of it.

        `vectors` by id, which the model of `digest` made, are needed for entries whose text is new; raises
        VectorsMissingError when one is not given, OutdatedError when the others were made by another model.
        """
        given = {entry.item_id: entry.content() for entry in entries}
        if len({*given, *removed}) < len(entries) + len(removed):
            raise EditError("an item is named twice in one edit")
        with self.write_transaction() as state:
            check_digest(self.path.name, state.digest, digest)
            kept = {item_id: found for item_id in (*given, *removed) if (found := self._stored_item(item_id))}
            places = {item_id: place for item_id, (place, _) in kept.items()}
            old = {item_id: content for item_id, (_, content) in kept.items()}
            fresh = [item_id for item_id in given if item_id not in old or old[item_id][0] != given[item_id][0]]
            changed = [item_id for item_id in given if old.get(item_id) != given[item_id]]
            gone = [item_id for item_id in removed if item_id in old]
            if changed or gone:
                self._append(fresh, vectors, state)
                places |= {item_id: state.rows + number for number, item_id in enumerate(fresh)}
                version = state.version + 1
                lines = [(item_id, places[item_id], *given[item_id], version) for item_id in changed]
                self._writer.executemany(
                    UPSERT_SQL, [*lines, *((item_id, None, "", "{}", 0.0, version) for item_id in gone)]
                )
                self._learn_names({name for entry in entries for name in entry.attributes})
                live = state.live + len(given.keys() - old.keys()) - len(gone)
                state = replace(state, version=version, rows=state.rows + len(fresh), live=live)
                save_state(self._writer, state)
        outcomes: list[Outcome] = [edit_outcome(old.get(item_id), given[item_id]) for item_id in given]
        outcomes += ["removed" if item_id in old else "unchanged" for item_id in removed]
        return EditResult(tuple(outcomes), state.version, state.live)

    def delete(self, version: int | None = None) -> bool:
        """Take the catalogue away for good, or only while it is of this version; whether it did.

        An edit that is under way goes with it or is refused.
        """
        with self.write_transaction() as state:
            if version is not None and state.version != version:
                return False
            trash = Path(tempfile.mkdtemp(prefix=f".{self.path.name}-", dir=self.path.parent))
            self.path.rename(trash / self.path.name)
        shutil.rmtree(trash)
        return True

    def compact(self, min_dead_rows: int = MIN_DEAD_ROWS) -> bool:
        """Take dead rows out of the vectors when there are so many that it pays; whether it did."""
        return compaction.compact(self.path, self._writer, self.write_transaction(), min_dead_rows)

    def replace_vectors(self, digest: str, width: int, made: Mapping[str, tuple[str, Vector]]) -> None:
        """Replace all vectors: `made` has each item's text and the vector that the model of `digest` made of it.

        Raises VectorsMissingError for items of which it has none, or that of another text.
        """
        compaction.replace_vectors(self.path, self._writer, self.write_transaction(), (digest, width), made)

    @contextmanager
    def write_transaction(self) -> Iterator[State]:
        """Alone among all processes until the end, where what was written becomes durable, or is undone."""
        with self._write_lock, catalogue_errors(self.path.name):
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                if self.was_replaced:
                    raise CatalogueRemovedError(f"catalogue {self.path.name}: it was removed meanwhile")
                yield read_state(self._writer)
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    def _append(self, ids: Sequence[str], vectors: Mapping[str, Vector], state: State) -> None:
        if missing := [item_id for item_id in ids if item_id not in vectors]:
            raise VectorsMissingError(missing)
        if ids:
            rows = stacked([vectors[item_id] for item_id in ids], state.width)
            vector_file.append_vectors(self.path / state.file, state.rows, state.width, [rows])

    def _stored_item(self, item_id: str) -> tuple[int, Content] | None:
        found = self._writer.execute(
            "SELECT place, text, attributes, popularity FROM items WHERE item_id = ? AND place IS NOT NULL", (item_id,)
        ).fetchone()
        return None if found is None else (found[0], (found[1], found[2], found[3]))

    def _learn_names(self, names: Collection[str]) -> None:
        self._writer.executemany("INSERT OR IGNORE INTO names VALUES (?)", ((name,) for name in names))
        (known,) = self._writer.execute("SELECT count(*) FROM names").fetchone()
        if known > MAX_ATTRIBUTES:
            raise EditError(f"its items would have {known} different attributes; {MAX_ATTRIBUTES} are possible")

    def _data_version(self) -> int | None:
        try:
            with self._watch_lock:
                found: int = self._watcher.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error:  # someone recovers from a crash: look properly
            return None
        return found

    def _load_snapshot(self, old: Snapshot | None) -> Snapshot:
        for _ in range(_TRIES):
            self._reader.execute("BEGIN")
            try:
                state = read_state(self._reader)
                base = (
                    old
                    if old is not None and old.file == state.file
                    else empty_snapshot(self.path.name, state.file, state.width)
                )
                lines = (
                    self._reader.execute(SELECT_SINCE_SQL, (base.version,))
                    if base.rows
                    else self._reader.execute(SELECT_ALL_SQL)
                )
                changes = [
                    Change(item_id, place, text, json.loads(attributes), popularity)
                    for item_id, place, text, attributes, popularity in lines
                ]
            finally:
                self._reader.execute("ROLLBACK")
            try:
                vectors = vector_file.map_vectors(self.path / state.file, state.rows, state.width)
            except FileNotFoundError:  # rewritten since
                continue
            return base.with_changes(changes, state.version, state.digest, vectors)
        raise CatalogueError(f"catalogue {self.path.name}: its vectors are missing")


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
