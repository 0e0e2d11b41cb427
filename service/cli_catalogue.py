"""`heed catalogue`: whole catalogues, from a file and on disk, where running services see them at once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service import settings
from service.refusal import refuse, stop_on_signals

if TYPE_CHECKING:
    from rich.progress import Progress

    from models.bundle import Bundle
    from models.catalogue.items import Vector
    from models.catalogue.snapshot import Snapshot
    from models.catalogue.store import Catalogue
    from service.schemas_catalogue import CatalogueItem

catalogue = typer.Typer(no_args_is_help=True, help="Items that the service recommends from.")

BATCH = 256
"""Items that are embedded, and become durable, together."""

_SHOWN = 20

_Name = Annotated[str, typer.Argument(help="Name of the catalogue.")]
_Shelf = Annotated[Path | None, typer.Option(help="Folder that holds the catalogues (HEED_SHELF).", file_okay=False)]
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
    shelf: _Shelf = None,
    bundle: _Bundle = None,
) -> None:
    """Embed items and serve them; items of the same id are replaced, others stay.

    Interrupted, it goes on where it was when it is run again. Lines that cannot be used are named and left out.
    """
    from models.catalogue.errors import CatalogueError
    from models.catalogue.folder import is_name
    from models.catalogue.store import Catalogue

    if not is_name(name):
        refuse(f"the name {name!r} should be letters, digits, -, _ and . only", 2)
    folder = _folder(shelf)
    items, faults = _read(file)
    for fault in faults[:_SHOWN]:
        print(f"heed: {file.name}, {fault}", file=sys.stderr)
    if len(faults) > _SHOWN:
        print(f"heed: {file.name}: and {len(faults) - _SHOWN} more lines", file=sys.stderr)
    loaded = _loaded(bundle)
    outcomes: Counter[str] = Counter()
    stop_on_signals()
    try:
        embedder = _Embedder(name, loaded)
        embedder.prepare(folder / name)
        with closing(Catalogue(folder / name)) as opened, _progress() as progress:
            for edited in _put(opened, items, embedder, progress):
                outcomes.update(edited)
            opened.compact()
            count = _finished(opened, embedder)
    except CatalogueError as error:
        refuse(f"{error}; {_told(outcomes)} before that")
    except KeyboardInterrupt:
        refuse(f"stopped: {_told(outcomes)}; run it again to go on", 130)
    print(f"{name}: {_told(outcomes)}; {count} items. A running service has them now.")
    if faults:
        refuse(f"{len(faults)} lines of {file.name} were left out")


@catalogue.command("list")
def list_catalogues(shelf: _Shelf = None, bundle: _Bundle = None) -> None:
    """Every catalogue that a request can name, and what is wrong with the others."""
    from models.catalogue.errors import CatalogueError, check_digest
    from models.catalogue.folder import names_in
    from models.catalogue.store import Catalogue

    folder, loaded = _folder(shelf), _loaded(bundle)
    for name in names_in(folder):
        try:
            with closing(Catalogue(folder / name)) as opened:
                found = opened.snapshot()
            check_digest(name, found.digest, loaded.model)
            print(f"{name}: {found.count} items, {found.version} edits")
        except CatalogueError as error:
            print(f"not usable: {error}")


@catalogue.command("rebuild")
def rebuild(name: _Name, shelf: _Shelf = None, bundle: _Bundle = None) -> None:
    """Embed all items again, by the model that serves now; what is edited meanwhile is kept."""
    from models.catalogue.errors import CatalogueError, VectorsMissingError

    folder, loaded = _folder(shelf), _loaded(bundle)
    stop_on_signals()
    try:
        with closing(_existing(folder, name)) as opened, _progress() as progress:
            found = opened.snapshot()
            if found.digest == loaded.model:
                print(f"{name} is by this model already.")
                return
            embedder = _Embedder(name, loaded)
            made: dict[str, tuple[str, Vector]] = {}
            wanted: Sequence[str] = list(found.number_of)
            while True:
                texts = [found.texts[found.number_of[item_id]] for item_id in wanted]
                made |= _made(wanted, texts, embedder, progress)
                try:
                    opened.renew(embedder.digest, embedder.width, made)
                    break
                except VectorsMissingError as error:
                    found = opened.snapshot()
                    wanted = [item_id for item_id in error.ids if item_id in found.number_of]
            count = _finished(opened, embedder)
    except CatalogueError as error:
        refuse(error)
    except KeyboardInterrupt:
        refuse("stopped; nothing was changed", 130)
    print(f"{name}: {count} items embedded again. A running service of this model has them now.")


@catalogue.command("remove")
def remove_catalogue(name: _Name, shelf: _Shelf = None) -> None:
    """Delete a catalogue and its items; the model's own comes back, as shipped, when the service starts."""
    from models.catalogue.errors import CatalogueError

    try:
        with closing(_existing(_folder(shelf), name)) as opened:
            opened.discard()
    except CatalogueError as error:
        refuse(error)
    print(f"{name} is removed.")


class _Embedder:
    def __init__(self, name: str, bundle: Bundle) -> None:
        from models.ranking.bundle_files import load_recommender
        from models.runtime.offline import open_reader

        self._name, self._bundle = name, bundle
        self._recommender = load_recommender(bundle)
        self._reader = open_reader(bundle)
        self.width, self.digest = self._recommender.width, bundle.model

    def prepare(self, path: Path) -> None:
        """The catalogue to add to: the model's own begins with what is shipped. Raises CatalogueError."""
        from models.catalogue.folder import create
        from service.catalogues import place_own

        if self._name == self._recommender.catalogue:
            place_own(path, self._bundle, self._recommender)
        else:
            create(path, self.digest, self.width)

    def index(self, path: Path, found: Snapshot) -> None:
        """Of a large catalogue, so that a service need not build it. Raises OSError."""
        from models.catalogue.vector_index import INDEXED, kept

        if found.rows > INDEXED:
            kept(path, found.file, found.vectors, *self._recommender.tastes(found.vectors))

    def vectors(self, ids: Sequence[str], texts: Sequence[str]) -> dict[str, Vector]:
        from service.catalogues import placed

        return placed(self._recommender, self._name, ids, self._reader.texts(texts)) if ids else {}


def _finished(opened: Catalogue, embedder: _Embedder) -> int:
    """How many items there are."""
    found = opened.snapshot()
    try:
        embedder.index(opened.path, found)
    except OSError as error:  # the service tries again, and takes all products meanwhile
        print(f"heed: {found.name} could not be indexed ({error})", file=sys.stderr)
    return found.count


def _put(
    opened: Catalogue, items: Sequence[CatalogueItem], embedder: _Embedder, progress: Progress
) -> Iterator[Sequence[str]]:
    """The outcomes of batch after batch; what is there already is not embedded again."""
    from models.catalogue.errors import VectorsMissingError, check_digest

    there = opened.snapshot()
    check_digest(there.name, there.digest, embedder.digest)
    task = progress.add_task("items", total=len(items))
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        wanted = [item for item in batch if not there.has(item.item_id, item.text)]
        entries = [item.entry() for item in batch]
        while True:
            vectors = embedder.vectors([item.item_id for item in wanted], [item.text for item in wanted])
            try:
                edited = opened.edit(embedder.digest, entries, vectors)
                break
            except VectorsMissingError:  # someone else changed a text since
                wanted = list(batch)
        progress.advance(task, len(batch))
        yield edited.outcomes


def _made(
    ids: Sequence[str], texts: Sequence[str], embedder: _Embedder, progress: Progress
) -> dict[str, tuple[str, Vector]]:
    task = progress.add_task("items", total=len(ids))
    found: dict[str, tuple[str, Vector]] = {}
    for start in range(0, len(ids), BATCH):
        part = slice(start, start + BATCH)
        vectors = embedder.vectors(ids[part], texts[part])
        found |= {item_id: (text, vectors[item_id]) for item_id, text in zip(ids[part], texts[part], strict=True)}
        progress.advance(task, len(vectors))
    return found


def _read(file: Path) -> tuple[list[CatalogueItem], list[str]]:
    """The items of a file, and what is wrong with which line."""
    from models.text.language import is_readable
    from service.bodies import parse
    from service.errors import Problem
    from service.schemas_catalogue import CatalogueItem

    items: list[CatalogueItem] = []
    faults: list[str] = []
    lines: dict[str, int] = {}
    with file.open("rb") as opened:
        for number, line in enumerate(opened, 1):
            if not line.strip():
                continue
            try:
                item = parse(CatalogueItem, line)
            except Problem as problem:
                where = f" ({problem.pointer})" if problem.pointer else ""
                faults.append(f"line {number}: {problem.detail}{where}")
                continue
            if (first := lines.setdefault(item.item_id, number)) != number:
                faults.append(f"line {number}: the item {item.item_id!r} is in line {first} already")
            elif not is_readable(item.text):
                faults.append(f"line {number}: the text holds nothing that can be read")
            else:
                items.append(item)
    return items, faults


def _folder(shelf: Path | None) -> Path:
    from service.catalogues import FOLDER

    try:
        chosen = settings.load(shelf=shelf and shelf.resolve()).shelf
    except settings.SettingsError as error:
        refuse(error, 2)
    if chosen is None:
        refuse("HEED_SHELF is none: there is no folder for catalogues", 2)
    return chosen / FOLDER


def _loaded(bundle: Path | None) -> Bundle:
    from models.bundle import BundleError, load

    try:
        chosen = bundle or settings.load().recommend_bundle
        if chosen is None:
            refuse("HEED_RECOMMEND_BUNDLE is none: there is no model of recommendations", 2)
        found = load(chosen)
        if found.task.name != "recommend":
            refuse(f"{found.name} is a model of {found.task.name}, not of recommendations", 2)
        return found
    except settings.SettingsError as error:
        refuse(error, 2)
    except BundleError as error:
        refuse(error)


def _existing(folder: Path, name: str) -> Catalogue:
    """Raises CatalogueError."""
    from models.catalogue.folder import is_name
    from models.catalogue.store import Catalogue

    if not is_name(name):
        refuse(f"there is no catalogue {name!r} in {folder}")
    return Catalogue(folder / name)


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _told(outcomes: Counter[str]) -> str:
    return ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in ("added", "changed", "unchanged"))
