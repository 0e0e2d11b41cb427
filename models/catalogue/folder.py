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
_NO_VECTORS: Mapping[str, Vector] = MappingProxyType({})


def is_valid_name(name: str) -> bool:
    """Return whether a name has only letters, digits, -, _ and ., so that it can name a folder on any system."""
    has_valid_length = 0 < len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES
    return has_valid_length and name[0] not in ".-" and all(letter.isalnum() or letter in "-_." for letter in name)


def list_names(folder: Path) -> list[str]:
    """Return the sorted names of the catalogues in a folder."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in paths if is_valid_name(path.name) and (path / DATABASE).is_file())


def list_strays(folder: Path) -> list[str]:
    """Return the sorted names in a folder that a catalogue could have, but that are none: a file, a FIFO, a folder."""
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in paths if is_valid_name(path.name) and not (path / DATABASE).is_file())


def create_catalogue(
    path: Path, digest: str, width: int, items: Sequence[Item] = (), vectors: Mapping[str, Vector] = _NO_VECTORS
) -> bool:
    """Create a catalogue of version 0 atomically, and return whether it did.

    Return False if the catalogue exists already. `digest` names the model that makes its vectors.
    """
    with catalogue_errors(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with catalogue_errors(path.name):
            with closing(connect(temporary / DATABASE, mode="rwc")) as database:
                database.execute("PRAGMA journal_mode=WAL")
                database.executescript(SCHEMA_SQL)
                database.execute("INSERT INTO meta VALUES (?, ?, ?, 0, 'vectors.f32', 0, 0)", (FORMAT, digest, width))
            if items:
                with closing(Catalogue(temporary)) as catalogue:
                    catalogue.edit(digest, items, vectors)
                with closing(connect(temporary / DATABASE)) as database:
                    database.executescript("UPDATE meta SET version = 0; UPDATE items SET version = 0")
            temporary.chmod(0o755)
            sync_folder(temporary)
            try:
                temporary.rename(path)
            except OSError:
                if (path / DATABASE).is_file():
                    return False
                raise
            sync_folder(path.parent)
        return True
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_catalogue(path: Path) -> None:
    with closing(Catalogue(path)) as catalogue:
        catalogue.delete()
