"""The catalogues that a running gateway ranks: those of a folder, and that of its model, which it puts there itself.

Files are the truth and other processes edit them, so each request asks whether what is in memory is still the newest: a
few system calls when it is. A catalogue that cannot be used is remembered with its reason, and the others serve on.
Knows files and problems, nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import structlog

from models.bundle import Bundle
from models.catalogue.errors import (
    BusyError,
    CatalogueError,
    CatalogueRemovedError,
    DiskFullError,
    EditError,
    OutdatedError,
    VectorsMissingError,
    check_digest,
)
from models.catalogue.folder import create_catalogue, is_valid_name, list_names
from models.catalogue.items import EditResult, Item, Vector
from models.catalogue.snapshot import Snapshot
from models.catalogue.store import DATABASE, Catalogue
from models.catalogue.vector_index import MIN_INDEX_ROWS
from models.ranking.bundle_files import load_own_catalogue
from models.ranking.recommender import Recommender
from service.errors import (
    CatalogueBusy,
    CatalogueOutdated,
    CatalogueReadOnly,
    CatalogueUnusable,
    DeadlineExceeded,
    DiskFull,
    InvalidRequest,
    NotFound,
)
from service.inference.ranking import prepare_projections
from service.registry.file_watch import Stamp, stamp_of
from service.registry.index_builder import IndexBuilder

FOLDER = "catalogues"
"""The folder of catalogues in the data directory."""

_BUSY_S, _BROKEN_S = 1.0, 30.0
_TRIES = 3
_NAMED = 20
_log = structlog.get_logger(__name__)


class CatalogueRegistry:
    """Without a folder the model's own catalogue is served from a temporary one, and cannot be edited.

    Those of more than `indexed` rows get an index.
    """

    def __init__(
        self, bundle: Bundle, recommender: Recommender, folder: Path | None, indexed: int = MIN_INDEX_ROWS
    ) -> None:
        self.default_name = recommender.catalogue_name
        self._bundle = bundle
        self._recommender = recommender
        self._indexed = indexed
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="heed-catalogues-")
            folder = Path(self._temporary.name)
        self._folder = folder / FOLDER
        self._held: dict[str, _OpenCatalogue] = {}
        self._refused: dict[str, tuple[Stamp | None, str]] = {}
        self._opening = asyncio.Lock()

    async def start(self) -> None:
        await asyncio.to_thread(self._place_own)
        for name in await asyncio.to_thread(list_names, self._folder):
            try:
                await self.snapshot(name)
            except (CatalogueOutdated, CatalogueUnusable, CatalogueBusy, NotFound) as problem:
                _log.error("catalogue cannot be used", catalogue=name, reason=problem.detail)

    async def stop(self) -> None:
        held, self._held = list(self._held.values()), {}
        for one in held:
            await asyncio.to_thread(one.catalogue.close)
        if self._temporary is not None:
            await asyncio.to_thread(self._temporary.cleanup)

    async def names(self) -> list[str]:
        return await asyncio.to_thread(list_names, self._folder)

    async def snapshot(self, name: str, pointer: str | None = None) -> Snapshot:
        """With every edit, of any process, that was acknowledged before the call.

        Raises NotFound, with the pointer, CatalogueOutdated, CatalogueUnusable or CatalogueBusy.
        """
        for _ in range(_TRIES):
            held = await self._holding(name, pointer)
            with _as_problems():
                try:
                    snapshot = await held.newest()
                    check_digest(name, snapshot.digest, self._bundle.model_digest)
                    return snapshot
                except CatalogueError:
                    if not held.catalogue.was_replaced:
                        raise
        raise CatalogueBusy("The catalogue is being replaced.", retry_after_s=_BUSY_S)

    async def edit(
        self, name: str, entries: Sequence[Item], vectors: Mapping[str, Vector], removed: Sequence[str], due_s: float
    ) -> EditResult:
        """As `Catalogue.edit`, begun by `due_s` on the monotonic clock; raises VectorsMissingError or a Problem."""
        if self._temporary is not None:
            raise CatalogueReadOnly("HEED_DATA_DIR is none: there is no folder that edits could be kept in.")
        held = await self._holding(name, None)
        try:
            async with asyncio.timeout(max(0.0, due_s - time.monotonic())):
                await held.writing.acquire()
        except TimeoutError:
            raise DeadlineExceeded("The catalogue was being edited all the time.") from None
        try:
            with _as_problems():
                return await asyncio.to_thread(
                    _edited, held.catalogue, self._bundle.model_digest, entries, vectors, removed
                )
        finally:
            held.writing.release()

    def item_vectors(self, name: str, ids: Sequence[str], raw: Sequence[Vector]) -> dict[str, Vector]:
        """Item vectors by id, of the encoder's vectors of their texts."""
        return item_vectors(self._recommender, name, ids, np.stack(raw)) if ids else {}

    async def _holding(self, name: str, pointer: str | None) -> _OpenCatalogue:
        held = self._held.get(name)
        if held is not None and not held.catalogue.was_replaced:
            return held
        async with self._opening:
            held = self._held.get(name)
            if held is not None and held.catalogue.was_replaced:
                del self._held[name]
                await asyncio.to_thread(held.catalogue.close)
                held = None
            if held is None:
                opened = await self._opened(name, pointer)
                held = self._held[name] = _OpenCatalogue(opened, self._recommender, self._indexed)
            return held

    async def _opened(self, name: str, pointer: str | None) -> Catalogue:
        path = self._folder / name
        stamp = stamp_of(path / DATABASE) if is_valid_name(name) else None
        refused = self._refused.get(name)
        if refused is not None and refused[0] == stamp:
            raise CatalogueUnusable(refused[1], retry_after_s=_BROKEN_S)
        try:
            if stamp is None:
                raise CatalogueRemovedError(name)
            return await asyncio.to_thread(Catalogue, path)
        except CatalogueRemovedError:
            known = await self.names()
            listed = ", ".join(known[:_NAMED]) + (", ..." if len(known) > _NAMED else "")
            raise NotFound(
                f"There is no catalogue of this name; there are: {listed or 'none'}.", pointer=pointer
            ) from None
        except BusyError as error:
            raise CatalogueBusy(f"The {error}.", retry_after_s=_BUSY_S) from error
        except CatalogueError as error:
            _log.error("catalogue cannot be used", catalogue=name, reason=str(error))
            self._refused[name] = (stamp, f"The {error}.")
            raise CatalogueUnusable(f"The {error}.", retry_after_s=_BROKEN_S) from error

    def _place_own(self) -> None:
        path = self._folder / self.default_name
        try:
            copy_own_catalogue(path, self._bundle, self._recommender)
        except CatalogueRemovedError:  # another replica replaces it
            return
        except CatalogueError as error:
            _log.error("the model's own catalogue cannot be placed", reason=str(error))
            self._refused[self.default_name] = (stamp_of(path / DATABASE), f"The {error}.")


def copy_own_catalogue(path: Path, bundle: Bundle, recommender: Recommender) -> None:
    """Put the model's own catalogue there, unless there is one that is up to date or was edited."""
    if (path / DATABASE).is_file():
        with closing(Catalogue(path)) as there:
            if there.snapshot().digest == bundle.model_digest or not there.delete(version=0):
                return
    _, entries, vectors = load_own_catalogue(bundle)
    rows = dict(zip((entry.item_id for entry in entries), vectors, strict=True))
    create_catalogue(path, bundle.model_digest, recommender.width, entries, rows)


def item_vectors(recommender: Recommender, name: str, ids: Sequence[str], raw: Vector) -> dict[str, Vector]:
    """Item vectors by id, of texts' vectors (ids, width); ids count in the model's own catalogue alone."""
    known: Sequence[str | None] = ids if name == recommender.catalogue_name else [None] * len(ids)
    return dict(zip(ids, recommender.item_vectors(raw, known), strict=True))


class _OpenCatalogue:
    """One open catalogue. Who waits for its newest state, or to write, waits in the event loop and in no thread."""

    def __init__(self, catalogue: Catalogue, recommender: Recommender, indexed: int) -> None:
        self.catalogue, self._recommender = catalogue, recommender
        self._indexing = IndexBuilder(catalogue, recommender, indexed)
        self.reading, self.writing = asyncio.Lock(), asyncio.Lock()

    async def newest(self) -> Snapshot:
        if self.catalogue.has_changes:
            async with self.reading:
                if self.catalogue.has_changes:
                    await asyncio.to_thread(self._read)
        assert self.catalogue.latest_snapshot is not None
        self._indexing.build_if_due(self.catalogue.latest_snapshot)
        return self.catalogue.latest_snapshot

    def _read(self) -> None:
        prepare_projections(self._recommender, self.catalogue.snapshot())


def _edited(
    catalogue: Catalogue, digest: str, entries: Sequence[Item], vectors: Mapping[str, Vector], removed: Sequence[str]
) -> EditResult:
    edited = catalogue.edit(digest, entries, vectors, removed)
    try:
        catalogue.compact()
    except CatalogueError as error:  # the edit is kept all the same
        _log.error("catalogue cannot be compacted", catalogue=catalogue.path.name, reason=str(error))
    return edited


@contextmanager
def _as_problems() -> Iterator[None]:
    try:
        yield
    except VectorsMissingError:
        raise
    except OutdatedError as error:
        raise CatalogueOutdated(f"The {error}.") from error
    except DiskFullError as error:
        raise DiskFull(f"The {error}; nothing was changed.") from error
    except BusyError as error:
        raise CatalogueBusy(f"The {error}.", retry_after_s=_BUSY_S) from error
    except EditError as error:
        raise InvalidRequest(f"Nothing was changed: {error}.", pointer="/items") from error
    except CatalogueRemovedError as error:
        raise NotFound(f"The {error}.") from error
    except CatalogueError as error:
        raise CatalogueUnusable(f"The {error}.", retry_after_s=_BROKEN_S) from error
