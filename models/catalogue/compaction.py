"""Rewriting all vectors of a catalogue into a new file, either without dead rows or by another model.

The rewrite runs inside a catalogue's write transaction. The file that readers have mapped stays as it is.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from models.catalogue import vector_file
from models.catalogue.database import SELECT_ALL_SQL, State, save_state
from models.catalogue.errors import VectorsMissingError
from models.catalogue.items import Vector, stack_vectors
from models.catalogue.vector_index import SUFFIX
from models.files import sync_folder

MIN_DEAD_ROWS = 1_024
"""Dead rows that never trigger a compaction: it needs more than these and more than `_MIN_DEAD_SHARE` of all rows."""

_MIN_DEAD_SHARE = 0.25
_CHUNK_ROWS = 4_096


def compact(
    folder: Path, database: sqlite3.Connection, transaction: AbstractContextManager[State], min_dead_rows: int
) -> bool:
    """Remove dead rows from the vectors if there are enough of them, and return whether it did."""
    with _replace_vector_file(folder, transaction) as (state, file):
        if state.rows - state.live <= max(min_dead_rows, _MIN_DEAD_SHARE * state.rows):
            return False
        records = database.execute(SELECT_ALL_SQL).fetchall()
        vectors = vector_file.map_vectors(folder / state.file, state.rows, state.width)
        ids, live_rows = [record[0] for record in records], [record[1] for record in records]
        _write_vectors(folder, database, replace(state, file=file), ids, _iterate_chunks(vectors, live_rows))
    return True


def replace_vectors(
    folder: Path,
    database: sqlite3.Connection,
    transaction: AbstractContextManager[State],
    model: tuple[str, int],
    encoded: Mapping[str, tuple[str, Vector]],
) -> None:
    """Replace all vectors by those of another model, named by its digest and width.

    `encoded` maps each item's ID to its text and the vector of that text. Raises VectorsMissingError for items that it
    lacks or lists with another text.
    """
    digest, width = model
    with _replace_vector_file(folder, transaction) as (state, file):
        texts = {record[0]: record[2] for record in database.execute(SELECT_ALL_SQL)}
        missing = [item_id for item_id, text in texts.items() if item_id not in encoded or encoded[item_id][0] != text]
        if missing:
            raise VectorsMissingError(missing)
        vectors = stack_vectors([encoded[item_id][1] for item_id in texts], width)
        state = replace(state, file=file, digest=digest, width=width, version=state.version + 1)
        _write_vectors(folder, database, state, list(texts), [vectors])


@contextmanager
def _replace_vector_file(folder: Path, transaction: AbstractContextManager[State]) -> Iterator[tuple[State, str]]:
    """Run the transaction, and yield its state and the name of a new file for all vectors.

    If the write fails, the new file is removed. If it succeeds, the old one is. File names are never reused, so a file
    removed here cannot belong to another process.
    """
    new_file = f"vectors-{uuid.uuid4().hex}.f32"
    try:
        with transaction as state:
            # A crash left these files: only the holder of the lock writes such files.
            for stray in folder.glob("vectors*.f32*"):
                if not stray.name.startswith(state.file):
                    stray.unlink(missing_ok=True)
            yield state, new_file
    except BaseException:
        (folder / new_file).unlink(missing_ok=True)
        raise
    if (folder / new_file).exists():
        (folder / state.file).unlink(missing_ok=True)
        (folder / f"{state.file}{SUFFIX}").unlink(missing_ok=True)


def _write_vectors(
    folder: Path, database: sqlite3.Connection, state: State, ids: Sequence[str], chunks: Iterable[Vector]
) -> None:
    rows = vector_file.append_vectors(folder / state.file, 0, state.width, chunks)
    sync_folder(folder)
    database.execute("DELETE FROM items WHERE place IS NULL")
    database.executemany(
        "UPDATE items SET place = ? WHERE item_id = ?", ((row, item_id) for row, item_id in enumerate(ids))
    )
    database.execute("DELETE FROM names")
    database.execute("INSERT INTO names SELECT DISTINCT key FROM items, json_each(items.attributes)")
    save_state(database, replace(state, rows=rows))


def _iterate_chunks(vectors: Vector, rows: Sequence[int]) -> Iterator[Vector]:
    for start in range(0, len(rows), _CHUNK_ROWS):
        yield vectors[rows[start : start + _CHUNK_ROWS]]
