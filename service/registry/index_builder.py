"""Keeps the vector index of a large catalogue: built in a thread that gives way, beside what serves.

Until it is there, and whenever it cannot be made, all products are taken.
"""

from __future__ import annotations

import threading
import time

import structlog

from models.catalogue.snapshot import Snapshot
from models.catalogue.store import Catalogue
from models.catalogue.vector_index import load_or_build
from models.ranking.recommender import Recommender
from service.inference.priority import lower_thread_priority

_AGAIN_S = 600.0
"""After a failure."""

_log = structlog.get_logger(__name__)


class IndexBuilder:
    """Of one catalogue; up to `indexed` rows there is no index."""

    def __init__(self, catalogue: Catalogue, recommender: Recommender, indexed: int) -> None:
        self._catalogue, self._recommender, self._indexed = catalogue, recommender, indexed
        self._working = False
        self._failed, self._not_before_s = "", 0.0

    def build_if_due(self, snapshot: Snapshot) -> None:
        """Begin what has to be done for this snapshot, the newest; takes no time. Called from one thread."""
        due = snapshot.index is None or snapshot.index.is_due(snapshot.rows)
        failed = snapshot.file == self._failed and time.monotonic() < self._not_before_s
        if snapshot.rows <= self._indexed or not due or self._working or failed:
            return
        self._working = True
        # A daemon, so that a service that stops does not wait for it: what it writes is whole or not there.
        threading.Thread(target=self._work, args=(snapshot,), name="index", daemon=True).start()

    def _work(self, snapshot: Snapshot) -> None:
        try:
            lower_thread_priority()
            begun_s = time.monotonic()
            basis, tastes = self._recommender.query_subspace(snapshot.vectors)
            index = load_or_build(self._catalogue.path, snapshot.file, snapshot.vectors, basis, tastes)
            if index.rows > snapshot.rows:  # by another process, of edits that were not read here yet
                self._catalogue.snapshot()
            self._catalogue.attach_index(snapshot.file, index)
            _log.info(
                "catalogue is indexed",
                catalogue=snapshot.name,
                rows=index.rows,
                searched=f"1 list of {index.probes}",
                recall=round(index.recall, 3),
                seconds=round(time.monotonic() - begun_s, 1),
            )
        except Exception as error:
            self._failed, self._not_before_s = snapshot.file, time.monotonic() + _AGAIN_S
            _log.error("catalogue cannot be indexed", catalogue=snapshot.name, reason=repr(error))
        finally:
            self._working = False
