"""The registry of catalogues that a running gateway ranks: those of a folder, and the model's own.

The gateway copies the model's own catalogue into the folder. The files are authoritative, and other processes edit
them. So each request checks that the snapshot in memory is the newest, which costs a few system calls if it is. A
catalogue that cannot be used is remembered with its reason, and the rest stays in service. The module knows files and
problems but not HTTP.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import structlog

from models.bundle import Bundle
from models.catalogue.errors import (
    BusyError,
    CatalogueError,
    CatalogueFullError,
    CatalogueRemovedError,
    DiskFullError,
    EditError,
    OutdatedError,
    VectorsMissingError,
    check_digest,
)
from models.catalogue.folder import create_catalogue, is_valid_name, list_names, list_strays
from models.catalogue.items import CatalogueLimits, EditResult, Item, Vector
from models.catalogue.snapshot import Snapshot
from models.catalogue.store import DATABASE, Catalogue
from models.catalogue.vector_index import MIN_INDEX_ROWS
from models.names import list_nearest
from models.ranking.bundle_files import load_own_catalogue
from models.ranking.recommender import Recommender
from service.errors import (
    CatalogueBusy,
    CatalogueFull,
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

_BUSY_RETRY_S, _BROKEN_RETRY_S = 1.0, 30.0
_MAX_TRIES = 3
_log = structlog.get_logger(__name__)


class CatalogueRegistry:
    """The catalogues of a data directory, opened when they are first requested.

    Without a folder, the model's own catalogue is served from a temporary folder and cannot be edited. A catalogue of
    more than `max_unindexed` rows gets an index. Edits keep the `limits`, if there are any.
    """

    def __init__(
        self,
        bundle: Bundle,
        recommender: Recommender,
        folder: Path | None,
        max_unindexed: int = MIN_INDEX_ROWS,
        limits: CatalogueLimits | None = None,
    ) -> None:
        self.default_name = recommender.catalogue_name
        self._bundle = bundle
        self._recommender = recommender
        self._max_unindexed, self._limits = max_unindexed, limits
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="heed-catalogues-")
            folder = Path(self._temporary.name)
        self._folder = folder / FOLDER
        self._opened: dict[str, _OpenCatalogue] = {}
        self._unusable: dict[str, tuple[Stamp | None, str]] = {}
        self._reported: dict[str, tuple[Stamp | None, str]] = {}
        self._opening = asyncio.Lock()

    async def start(self) -> None:
        await asyncio.to_thread(self._copy_own_catalogue)
        for name in await asyncio.to_thread(list_strays, self._folder):
            _log.error("this is no catalogue and is left out", catalogue=name)
        for name in await asyncio.to_thread(list_names, self._folder):
            try:
                await self.snapshot(name)
            except (CatalogueOutdated, CatalogueUnusable, CatalogueBusy, NotFound) as problem:
                self._report(name, problem)

    async def stop(self) -> None:
        opened, self._opened = list(self._opened.values()), {}
        for open_catalogue in opened:
            await asyncio.to_thread(open_catalogue.catalogue.close)
        if self._temporary is not None:
            await asyncio.to_thread(self._temporary.cleanup)

    async def names(self) -> list[str]:
        """Return the names of all catalogues in the folder."""
        return await asyncio.to_thread(list_names, self._folder)

    async def snapshot(self, name: str, pointer: str | None = None) -> Snapshot:
        """Return a snapshot with every edit, of any process, that was acknowledged before the call.

        Raises:
            NotFound: There is no such catalogue. The problem has the pointer.
            CatalogueOutdated: The catalogue was made by another model.
            CatalogueUnusable: Its files cannot be used.
            CatalogueBusy: Another process is replacing or locking it.
        """
        for _ in range(_MAX_TRIES):
            opened = await self._open(name, pointer)
            with _as_problems():
                try:
                    snapshot = await opened.newest()
                    check_digest(name, snapshot.digest, self._bundle.model_digest)
                    return snapshot
                except CatalogueError as error:
                    if not opened.catalogue.was_replaced:
                        if not isinstance(error, BusyError | CatalogueRemovedError):
                            self._report(name, error)
                        raise
        raise CatalogueBusy("The catalogue is being replaced.", retry_after_s=_BUSY_RETRY_S)

    async def edit(
        self, name: str, items: Sequence[Item], vectors: Mapping[str, Vector], removed: Sequence[str], deadline_s: float
    ) -> EditResult:
        """Edit a catalogue like `Catalogue.edit`, starting by `deadline_s` on the monotonic clock.

        Raises:
            VectorsMissingError: Items with a new text have no vector.
            Problem: The edit is impossible or came too late.
        """
        if self._temporary is not None:
            raise CatalogueReadOnly("HEED_DATA_DIR is none, so edits cannot be stored. Set it to a folder.")
        opened = await self._open(name, None)
        try:
            async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                await opened.write_lock.acquire()
        except TimeoutError:
            raise DeadlineExceeded("Other edits of the catalogue took all the time of this request.") from None
        try:
            with _as_problems():
                return await asyncio.to_thread(
                    _edit_and_compact, opened.catalogue, self._bundle.model_digest, items, vectors, removed
                )
        finally:
            opened.write_lock.release()

    def check_room(self, snapshot: Snapshot, added: Sequence[str], removed: Sequence[str]) -> None:
        """Raise CatalogueFull before any text is embedded, if no item can be added in any case."""
        if self._limits is None or removed or snapshot.count < self._limits.items:
            return
        if new := sum(item_id not in snapshot.row_by_id for item_id in added):
            with _as_problems():
                self._limits.check(snapshot.name, (snapshot.count, 0), (snapshot.count + new, 0))

    def item_vectors(self, name: str, ids: Sequence[str], raw: Sequence[Vector]) -> dict[str, Vector]:
        """Return item vectors by id, from the encoder's vectors of the texts."""
        return item_vectors(self._recommender, name, ids, np.stack(raw)) if ids else {}

    async def _open(self, name: str, pointer: str | None) -> _OpenCatalogue:
        opened = self._opened.get(name)
        if opened is not None and not opened.catalogue.was_replaced:
            return opened
        async with self._opening:
            opened = self._opened.get(name)
            if opened is not None and opened.catalogue.was_replaced:
                del self._opened[name]
                await asyncio.to_thread(opened.catalogue.close)
                opened = None
            if opened is None:
                catalogue = await self._open_files(name, pointer)
                opened = self._opened[name] = _OpenCatalogue(catalogue, self._recommender, self._max_unindexed)
            return opened

    async def _open_files(self, name: str, pointer: str | None) -> Catalogue:
        path = self._folder / name
        stamp = stamp_of(path / DATABASE) if is_valid_name(name) else None
        unusable = self._unusable.get(name)
        if unusable is not None and unusable[0] == stamp:
            raise CatalogueUnusable(unusable[1], retry_after_s=_BROKEN_RETRY_S)
        try:
            if stamp is None:
                raise CatalogueRemovedError(name)
            return await asyncio.to_thread(Catalogue, path, self._limits)
        except CatalogueRemovedError:
            known = list_nearest(await self.names(), name) or "none"
            raise NotFound(f"There is no catalogue of this name; there are: {known}.", pointer=pointer) from None
        except BusyError as error:
            raise CatalogueBusy(f"The {error}.", retry_after_s=_BUSY_RETRY_S) from error
        except CatalogueError as error:
            self._report(name, error)
            self._unusable[name] = (stamp, f"The {error}.")
            raise CatalogueUnusable(f"The {error}.", retry_after_s=_BROKEN_RETRY_S) from error

    def _report(self, name: str, fault: Exception) -> None:
        """Log why a catalogue cannot be used, once for each state of its file."""
        reason = f"{fault}".removeprefix("The ").removesuffix(".")
        state = (stamp_of(self._folder / name / DATABASE), reason)
        if self._reported.get(name) != state:
            self._reported[name] = state
            _log.error("catalogue cannot be used", catalogue=name, reason=reason, once=(str(self._folder), name, state))

    def _copy_own_catalogue(self) -> None:
        path = self._folder / self.default_name
        try:
            with suppress(CatalogueRemovedError):  # another replica is replacing it
                copy_own_catalogue(path, self._bundle, self._recommender)
        except CatalogueError as error:
            self._report(self.default_name, error)
            self._unusable[self.default_name] = (stamp_of(path / DATABASE), f"The {error}.")


def copy_own_catalogue(path: Path, bundle: Bundle, recommender: Recommender) -> None:
    """Copy the model's own catalogue to the path, unless one is there that is up to date or was edited."""
    if (path / DATABASE).is_file():
        with closing(Catalogue(path)) as catalogue:
            if catalogue.snapshot().digest == bundle.model_digest or not catalogue.delete(version=0):
                return
    _, items, vectors = load_own_catalogue(bundle)
    vectors_by_id = dict(zip((item.item_id for item in items), vectors, strict=True))
    create_catalogue(path, bundle.model_digest, recommender.width, items, vectors_by_id)


def item_vectors(recommender: Recommender, name: str, ids: Sequence[str], raw: Vector) -> dict[str, Vector]:
    """Return item vectors by id, from the encoder's vectors of the texts (ids, width).

    Only in the model's own catalogue do ids refer to items of the training data.
    """
    known: Sequence[str | None] = ids if name == recommender.catalogue_name else [None] * len(ids)
    return dict(zip(ids, recommender.item_vectors(raw, known), strict=True))


class _OpenCatalogue:
    """An open catalogue. Readers and writers wait for its locks in the event loop and block no thread."""

    def __init__(self, catalogue: Catalogue, recommender: Recommender, max_unindexed: int) -> None:
        self.catalogue, self._recommender = catalogue, recommender
        self._index_builder = IndexBuilder(catalogue, recommender, max_unindexed)
        self._read_lock, self.write_lock = asyncio.Lock(), asyncio.Lock()

    async def newest(self) -> Snapshot:
        if self.catalogue.has_changes:
            async with self._read_lock:
                if self.catalogue.has_changes:
                    await asyncio.to_thread(self._read)
        assert self.catalogue.latest_snapshot is not None
        self._index_builder.build_if_due(self.catalogue.latest_snapshot)
        return self.catalogue.latest_snapshot

    def _read(self) -> None:
        prepare_projections(self._recommender, self.catalogue.snapshot())


def _edit_and_compact(
    catalogue: Catalogue, digest: str, items: Sequence[Item], vectors: Mapping[str, Vector], removed: Sequence[str]
) -> EditResult:
    result = catalogue.edit(digest, items, vectors, removed)
    try:
        catalogue.compact()
    except CatalogueError as error:  # the edit is stored nevertheless
        _log.error("catalogue cannot be compacted", catalogue=catalogue.path.name, reason=str(error))
    return result


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
        raise CatalogueBusy(f"The {error}.", retry_after_s=_BUSY_RETRY_S) from error
    except CatalogueFullError as error:
        advice = f"Remove items, or raise HEED_MAX_CATALOGUE_{error.limit.upper()}."
        raise CatalogueFull(f"The {error}; nothing was changed. {advice}", pointer="/items") from error
    except EditError as error:
        raise InvalidRequest(f"Nothing was changed: {error}.", pointer="/items") from error
    except CatalogueRemovedError as error:
        raise NotFound(f"The {error}.") from error
    except CatalogueError as error:
        raise CatalogueUnusable(f"The {error}.", retry_after_s=_BROKEN_RETRY_S) from error
