"""`heed catalogue`: whole catalogues, from a file and on disk, where running services see them at once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service import settings
from service.cli.catalogue_import import Embedder, embed_missing, progress_bar, put_items, read_items
from service.cli.exit import fail, stop_on_signals

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.catalogue.items import Vector
    from models.catalogue.store import Catalogue


catalogue = typer.Typer(no_args_is_help=True, help="Items that the service recommends from.")

_SHOWN = 20

_Name = Annotated[str, typer.Argument(help="Name of the catalogue.")]
_Shelf = Annotated[Path | None, typer.Option(help="Folder that holds the catalogues (HEED_DATA_DIR).", file_okay=False)]
_Bundle = Annotated[
    Path | None, typer.Option(help="Folder of the recommendation model (HEED_RECOMMEND_BUNDLE, the shipped one).")
]


@catalogue.command("add")
def add(
    name: _Name,
    file: Annotated[
        Path,
        typer.Argument(
            help="A JSON object a line: item_id, text, attributes, popularity.", exists=True, dir_okay=False
        ),
    ],
    data_dir: _Shelf = None,
    bundle: _Bundle = None,
) -> None:
    """Embed items and serve them; items of the same id are replaced, others stay.

    Interrupted, it goes on where it was when it is run again. Lines that cannot be used are named and left out.
    """
    from models.catalogue.errors import CatalogueError
    from models.catalogue.folder import is_valid_name
    from models.catalogue.store import Catalogue

    if not is_valid_name(name):
        fail(f"the name {name!r} should be letters, digits, -, _ and . only", 2)
    folder = _folder(data_dir)
    items, faults = read_items(file)
    for fault in faults[:_SHOWN]:
        print(f"heed: {file.name}, {fault}", file=sys.stderr)
    if len(faults) > _SHOWN:
        print(f"heed: {file.name}: and {len(faults) - _SHOWN} more lines", file=sys.stderr)
    loaded = _loaded(bundle)
    outcomes: Counter[str] = Counter()
    stop_on_signals()
    try:
        embedder = Embedder(name, loaded)
        embedder.prepare(folder / name)
        with closing(Catalogue(folder / name)) as opened, progress_bar() as progress:
            for edited in put_items(opened, items, embedder, progress):
                outcomes.update(edited)
            opened.compact()
            count = _finished(opened, embedder)
    except CatalogueError as error:
        fail(f"{error}; {_told(outcomes)} before that")
    except KeyboardInterrupt:
        fail(f"stopped: {_told(outcomes)}; run it again to go on", 130)
    print(f"{name}: {_told(outcomes)}; {count} items. A running service has them now.")
    if faults:
        fail(f"{len(faults)} lines of {file.name} were left out")


@catalogue.command("list")
def list_catalogues(data_dir: _Shelf = None, bundle: _Bundle = None) -> None:
    """Every catalogue that a request can name, and what is wrong with the others."""
    from models.catalogue.errors import CatalogueError, check_digest
    from models.catalogue.folder import list_names
    from models.catalogue.store import Catalogue

    folder, loaded = _folder(data_dir), _loaded(bundle)
    for name in list_names(folder):
        try:
            with closing(Catalogue(folder / name)) as opened:
                found = opened.snapshot()
            check_digest(name, found.digest, loaded.model_digest)
            print(f"{name}: {found.count} items, {found.version} edits")
        except CatalogueError as error:
            print(f"not usable: {error}")


@catalogue.command("rebuild")
def rebuild(name: _Name, data_dir: _Shelf = None, bundle: _Bundle = None) -> None:
    """Embed all items again, by the model that serves now; what is edited meanwhile is kept."""
    from models.catalogue.errors import CatalogueError, VectorsMissingError

    folder, loaded = _folder(data_dir), _loaded(bundle)
    stop_on_signals()
    try:
        with closing(_existing(folder, name)) as opened, progress_bar() as progress:
            found = opened.snapshot()
            if found.digest == loaded.model_digest:
                print(f"{name} is by this model already.")
                return
            embedder = Embedder(name, loaded)
            made: dict[str, tuple[str, Vector]] = {}
            wanted: Sequence[str] = list(found.row_by_id)
            while True:
                texts = [found.texts[found.row_by_id[item_id]] for item_id in wanted]
                made |= embed_missing(wanted, texts, embedder, progress)
                try:
                    opened.replace_vectors(embedder.digest, embedder.width, made)
                    break
                except VectorsMissingError as error:
                    found = opened.snapshot()
                    wanted = [item_id for item_id in error.ids if item_id in found.row_by_id]
            count = _finished(opened, embedder)
    except CatalogueError as error:
        fail(error)
    except KeyboardInterrupt:
        fail("stopped; nothing was changed", 130)
    print(f"{name}: {count} items embedded again. A running service of this model has them now.")


@catalogue.command("remove")
def remove_catalogue(name: _Name, data_dir: _Shelf = None) -> None:
    """Delete a catalogue and its items; the model's own comes back, as shipped, when the service starts."""
    from models.catalogue.errors import CatalogueError

    try:
        with closing(_existing(_folder(data_dir), name)) as opened:
            opened.delete()
    except CatalogueError as error:
        fail(error)
    print(f"{name} is removed.")


def _finished(opened: Catalogue, embedder: Embedder) -> int:
    """How many items there are."""
    found = opened.snapshot()
    try:
        embedder.index(opened.path, found)
    except OSError as error:  # the service tries again, and takes all products meanwhile
        print(f"heed: {found.name} could not be indexed ({error})", file=sys.stderr)
    return found.count


def _folder(data_dir: Path | None) -> Path:
    from service.registry.catalogues import FOLDER

    try:
        chosen = settings.load_settings(data_dir=data_dir and data_dir.resolve()).data_dir
    except settings.SettingsError as error:
        fail(error, 2)
    if chosen is None:
        fail("HEED_DATA_DIR is none: there is no folder for catalogues", 2)
    return chosen / FOLDER


def _loaded(bundle: Path | None) -> Bundle:
    from models.bundle import BundleError, load_bundle

    try:
        chosen = bundle or settings.load_settings().bundles.get("recommend")
        if chosen is None:
            fail("HEED_RECOMMEND_BUNDLE is none: there is no model of recommendations", 2)
        found = load_bundle(chosen)
        if found.task.name != "recommend":
            fail(f"{found.name} is a model of {found.task.name}, not of recommendations", 2)
        return found
    except settings.SettingsError as error:
        fail(error, 2)
    except BundleError as error:
        fail(error)


def _existing(folder: Path, name: str) -> Catalogue:
    """Raises CatalogueError."""
    from models.catalogue.folder import is_valid_name
    from models.catalogue.store import Catalogue

    if not is_valid_name(name):
        fail(f"there is no catalogue {name!r} in {folder}")
    return Catalogue(folder / name)


def _told(outcomes: Counter[str]) -> str:
    return ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in ("added", "changed", "unchanged"))
