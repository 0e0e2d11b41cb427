"""Writing a catalogue's vectors anew, into a file of their own: without the rows of no item, or by another model.

A catalogue calls it with the transaction of an edit, and what readers have mapped stays as it is.
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
from models.catalogue.items import Vector, stacked
from models.catalogue.vector_index import SUFFIX
from models.files import sync_folder

MIN_DEAD_ROWS = 1_024
"""Rows of no item up to which a compaction does not pay, nor up to _DEAD_SHARE of all."""

_DEAD_SHARE = 0.25
_CHUNK_ROWS = 4_096


def compact(
    folder: Path, database: sqlite3.Connection, writing: AbstractContextManager[State], min_dead_rows: int
) -> bool:
    """Take dead rows out of the vectors when there are so many that it pays; whether it did."""
    with _rewriting(folder, writing) as (state, file):
        if state.rows - state.live <= max(min_dead_rows, _DEAD_SHARE * state.rows):
            return False
        lines = database.execute(SELECT_ALL_SQL).fetchall()
        rows = vector_file.map_vectors(folder / state.file, state.rows, state.width)
        places = [line[1] for line in lines]
        _rewrite(folder, database, replace(state, file=file), [line[0] for line in lines], _chunks(rows, places))
    return True


def replace_vectors(
    folder: Path,
    database: sqlite3.Connection,
    writing: AbstractContextManager[State],
    model: tuple[str, int],
    made: Mapping[str, tuple[str, Vector]],
) -> None:
    """Replace all vectors by those of the model of this digest and width, `made` by id with the text of each.

    Raises VectorsMissingError for items of which it has none, or that of another text.
    """
    digest, width = model
    with _rewriting(folder, writing) as (state, file):
        texts = {line[0]: line[2] for line in database.execute(SELECT_ALL_SQL)}
        missing = [item_id for item_id, text in texts.items() if item_id not in made or made[item_id][0] != text]
        if missing:
            raise VectorsMissingError(missing)
        rows = stacked([made[item_id][1] for item_id in texts], width)
        state = replace(state, file=file, digest=digest, width=width, version=state.version + 1)
        _rewrite(folder, database, state, list(texts), [rows])


@contextmanager
def _rewriting(folder: Path, writing: AbstractContextManager[State]) -> Iterator[tuple[State, str]]:
    """As `writing`, with the name of a file for all vectors: it is gone when the write fails, the old one when not.

    Names are never used again, so what is taken away here cannot be another process's.
    """
    fresh = f"vectors-{uuid.uuid4().hex}.f32"
    try:
        with writing as state:
            for stray in folder.glob("vectors*.f32*"):  # of a crash: who writes one holds the lock
                if not stray.name.startswith(state.file):
                    stray.unlink(missing_ok=True)
            yield state, fresh
    except BaseException:
        (folder / fresh).unlink(missing_ok=True)
        raise
    if (folder / fresh).exists():
        (folder / state.file).unlink(missing_ok=True)
        (folder / f"{state.file}{SUFFIX}").unlink(missing_ok=True)


def _rewrite(
    folder: Path, database: sqlite3.Connection, state: State, ids: Sequence[str], chunks: Iterable[Vector]
) -> None:
    rows = vector_file.append_vectors(folder / state.file, 0, state.width, chunks)
    sync_folder(folder)
    database.execute("DELETE FROM items WHERE place IS NULL")
    database.executemany(
        "UPDATE items SET place = ? WHERE item_id = ?", ((place, item_id) for place, item_id in enumerate(ids))
    )
    database.execute("DELETE FROM names")
    database.execute("INSERT INTO names SELECT DISTINCT key FROM items, json_each(items.attributes)")
    save_state(database, replace(state, rows=rows))


def _chunks(rows: Vector, places: Sequence[int]) -> Iterator[Vector]:
    for start in range(0, len(places), _CHUNK_ROWS):
        yield rows[places[start : start + _CHUNK_ROWS]]
