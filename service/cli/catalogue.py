"""`heed catalogue`: catalogues on disk, filled from a file. A running service sees every change immediately."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.catalogue_import import CatalogueEmbedder, embed_missing, progress_bar, put_items, read_items
from service.cli.command import (
    describe_data_dir,
    examples,
    fail,
    fail_missing,
    log,
    read_settings,
    require_runtime,
    stop_on_signals,
)

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.catalogue.items import Vector
    from models.catalogue.store import Catalogue


catalogue = typer.Typer(no_args_is_help=True, help="Add, list, rebuild and remove catalogues of items to recommend.")

_MAX_SHOWN_FAULTS = 20

_Name = Annotated[str, typer.Argument(help="Name of the catalogue.")]
_DataDir = Annotated[
    Path | None, typer.Option(help="Folder whose catalogues are used (HEED_DATA_DIR).", file_okay=False)
]
_BundleFolder = Annotated[
    Path | None,
    typer.Option(help="Folder of the recommendation model (HEED_RECOMMEND_BUNDLE). The default is the shipped one."),
]


@catalogue.command("add", epilog=examples("heed catalogue add books items.jsonl"))
def add(
    name: _Name,
    file: Annotated[
        Path,
        typer.Argument(
            help="A .jsonl file: one object per line with item_id, text, and optional attributes and popularity.",
            exists=True,
            dir_okay=False,
        ),
    ],
    data_dir: _DataDir = None,
    bundle: _BundleFolder = None,
) -> None:
    """Embed items and serve them. An item replaces one of the same id, and all further items stay.

    Run the same command again to continue after an interruption. Faulty lines are named and skipped.
    """
    from models.catalogue.errors import CatalogueError, CatalogueFullError
    from models.catalogue.folder import is_valid_name
    from models.catalogue.items import CatalogueLimits
    from models.catalogue.store import Catalogue

    if not is_valid_name(name):
        fail(f"the name {name!r} should be letters, digits, -, _ and . only", 2)
    require_runtime()
    folder, configured = _find_folder(data_dir), read_settings()
    limits = CatalogueLimits(configured.max_catalogue_items, configured.max_catalogue_bytes)
    items, faults = read_items(file)
    for fault in faults[:_MAX_SHOWN_FAULTS]:
        print(f"heed: {file.name}, {fault}", file=sys.stderr)
    if len(faults) > _MAX_SHOWN_FAULTS:
        print(f"heed: {file.name}: and {len(faults) - _MAX_SHOWN_FAULTS} more lines", file=sys.stderr)
    loaded = _load_recommend_bundle(bundle)
    outcomes: Counter[str] = Counter()
    stop_on_signals()
    try:
        embedder = CatalogueEmbedder(name, loaded)
        embedder.prepare(folder / name)
        with closing(Catalogue(folder / name, limits)) as opened, progress_bar() as progress:
            for edited in put_items(opened, items, embedder, progress):
                outcomes.update(edited)
            opened.compact()
            count = _index(opened, embedder)
    except CatalogueFullError as error:
        setting = f"HEED_MAX_CATALOGUE_{error.limit.upper()}"
        fail(f"{error}: remove items, or raise {setting}; {_summarize(outcomes)} before that")
    except CatalogueError as error:
        fail(f"{error}; {_summarize(outcomes)} before that")
    except KeyboardInterrupt:
        fail(f"stopped: {_summarize(outcomes)}; run it again to go on", 130)
    print(
        f"{name}: {_summarize(outcomes)}; {count} items. {describe_data_dir(folder.parent)}. "
        "A running service with this data folder has them now."
    )
    if faults:
        fail(f"{len(faults)} lines of {file.name} were skipped")


@catalogue.command("list", epilog=examples("heed catalogue list"))
def list_catalogues(data_dir: _DataDir = None, bundle: _BundleFolder = None) -> None:
    """List every catalogue that a request can name, and say why the rest cannot be used."""
    from models.catalogue.errors import CatalogueError, check_digest
    from models.catalogue.folder import list_names
    from models.catalogue.store import Catalogue

    folder, loaded = _find_folder(data_dir), _load_recommend_bundle(bundle)
    log(describe_data_dir(folder.parent))
    for name in list_names(folder):
        try:
            with closing(Catalogue(folder / name)) as opened:
                snapshot = opened.snapshot()
            check_digest(name, snapshot.digest, loaded.model_digest)
            print(f"{name}: {snapshot.count} items, {snapshot.version} edits")
        except CatalogueError as error:
            print(f"not usable: {error}")


@catalogue.command("rebuild", epilog=examples("heed catalogue rebuild books"))
def rebuild(name: _Name, data_dir: _DataDir = None, bundle: _BundleFolder = None) -> None:
    """Embed all items again with the current model. Edits made meanwhile are not lost."""
    from models.catalogue.errors import CatalogueError, VectorsMissingError

    require_runtime()
    folder, loaded = _find_folder(data_dir), _load_recommend_bundle(bundle)
    stop_on_signals()
    try:
        with closing(_open_existing(folder, name)) as opened, progress_bar() as progress:
            snapshot = opened.snapshot()
            if snapshot.digest == loaded.model_digest:
                print(f"{name} was embedded with this model already.")
                return
            embedder = CatalogueEmbedder(name, loaded)
            vectors: dict[str, tuple[str, Vector]] = {}
            missing: Sequence[str] = list(snapshot.row_by_id)
            while True:
                texts = [snapshot.texts[snapshot.row_by_id[item_id]] for item_id in missing]
                vectors |= embed_missing(missing, texts, embedder, progress)
                try:
                    opened.replace_vectors(embedder.digest, embedder.width, vectors)
                    break
                except VectorsMissingError as error:
                    snapshot = opened.snapshot()
                    missing = [item_id for item_id in error.ids if item_id in snapshot.row_by_id]
            count = _index(opened, embedder)
    except CatalogueError as error:
        fail(error)
    except KeyboardInterrupt:
        fail("stopped; nothing was changed", 130)
    print(
        f"{name}: {count} items embedded again. {describe_data_dir(folder.parent)}. "
        "A running service with this data folder and this model has them now."
    )


@catalogue.command("remove", epilog=examples("heed catalogue remove books"))
def remove_catalogue(name: _Name, data_dir: _DataDir = None) -> None:
    """Delete a catalogue and its items. The model's own catalogue returns as shipped when the service starts."""
    from models.catalogue.errors import CatalogueError

    folder = _find_folder(data_dir)
    try:
        with closing(_open_existing(folder, name)) as opened:
            opened.delete()
    except CatalogueError as error:
        fail(error)
    print(f"{name} is removed. {describe_data_dir(folder.parent)}")


def _index(opened: Catalogue, embedder: CatalogueEmbedder) -> int:
    """Index a large catalogue and return how many items there are."""
    snapshot = opened.snapshot()
    try:
        embedder.index(opened.path, snapshot)
    except OSError as error:  # the service tries again, and searches exhaustively until then
        print(f"heed: {snapshot.name} could not be indexed ({error})", file=sys.stderr)
    return snapshot.count


def _find_folder(data_dir: Path | None) -> Path:
    from service.registry.catalogues import FOLDER

    chosen = read_settings(data_dir=data_dir and data_dir.resolve()).data_dir
    if chosen is None:
        fail("HEED_DATA_DIR is none: there is no folder for catalogues; name one with --data-dir", 2)
    return chosen / FOLDER


def _load_recommend_bundle(bundle: Path | None) -> Bundle:
    from models.bundle import BundleError, load_bundle

    try:
        chosen = bundle or read_settings().bundles.get("recommend")
        if chosen is None:
            fail("HEED_RECOMMEND_BUNDLE is none: there is no recommendation model", 2)
        loaded = load_bundle(chosen)
        if loaded.task.name != "recommend":
            fail(f"{loaded.name} is a model of {loaded.task.name}, not of recommendations", 2)
        return loaded
    except BundleError as error:
        fail(error)


def _open_existing(folder: Path, name: str) -> Catalogue:
    """Open a catalogue. If it is not there, fail with the folder, its setting and the names in it.

    Raises CatalogueError if it cannot be used.
    """
    from models.catalogue.errors import CatalogueRemovedError
    from models.catalogue.folder import is_valid_name, list_names
    from models.catalogue.store import Catalogue

    try:
        if is_valid_name(name):
            return Catalogue(folder / name)
    except CatalogueRemovedError:
        pass
    fail_missing("catalogue", name, folder, list_names(folder))


def _summarize(outcomes: Counter[str]) -> str:
    return ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in ("added", "changed", "unchanged"))
