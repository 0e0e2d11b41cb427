"""Names, creation and deletion of catalogues."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

from models.catalogue.database import SCHEMA_SQL, catalogue_errors, connect
from models.catalogue.items import Item, Vector
from models.catalogue.store import DATABASE, FORMAT, Catalogue
from models.files import sync_folder

MAX_NAME_BYTES = 128
_NONE: Mapping[str, Vector] = MappingProxyType({})


def is_valid_name(name: str) -> bool:
    """Letters, digits, -, _ and . alone: what can be the name of a folder anywhere."""
    fits = 0 < len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES
    return fits and name[0] not in ".-" and all(letter.isalnum() or letter in "-_." for letter in name)


def list_names(folder: Path) -> list[str]:
    """Of the catalogues of a folder, sorted."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in found if is_valid_name(path.name) and (path / DATABASE).is_file())


def create_catalogue(
    path: Path, digest: str, width: int, entries: Sequence[Item] = (), vectors: Mapping[str, Vector] = _NONE
) -> bool:
    """Make a catalogue of version 0, whole or not at all; False when one is there already.

    `digest` names the model that makes its vectors.
    """
    with catalogue_errors(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with catalogue_errors(path.name):
            with closing(connect(part / DATABASE, mode="rwc")) as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.executescript(SCHEMA_SQL)
                database.execute("INSERT INTO meta VALUES (?, ?, ?, 0, 'vectors.f32', 0, 0)", (FORMAT, digest, width))
            if entries:
                with closing(Catalogue(part)) as catalogue:
                    catalogue.edit(digest, entries, vectors)
                with closing(connect(part / DATABASE)) as database:
                    database.executescript("UPDATE meta SET version = 0; UPDATE items SET version = 0")
            part.chmod(0o755)
            sync_folder(part)
            try:
                part.rename(path)
            except OSError:
                if (path / DATABASE).is_file():
                    return False
                raise
            sync_folder(path.parent)
        return True
    finally:
        shutil.rmtree(part, ignore_errors=True)


def remove_catalogue(path: Path) -> None:
    with closing(Catalogue(path)) as catalogue:
        catalogue.delete()
