"""The builder of a large catalogue's vector index, in a thread of low priority.

Without an index, because it is not ready or cannot be made, rankings compute all products.
"""

from __future__ import annotations

import threading
import time

import structlog

from models.catalogue.snapshot import Snapshot
from models.catalogue.store import Catalogue
from models.catalogue.vector_index import load_or_build
from models.ranking.recommender import Recommender
from service.errors import describe_fault
from service.inference.priority import lower_thread_priority

_RETRY_S = 600.0
"""Seconds to wait after a failure."""

_log = structlog.get_logger(__name__)


class IndexBuilder:
    """The builder for one catalogue. A catalogue of at most `max_unindexed` rows gets no index."""

    def __init__(self, catalogue: Catalogue, recommender: Recommender, max_unindexed: int) -> None:
        self._catalogue, self._recommender, self._max_unindexed = catalogue, recommender, max_unindexed
        self._working = False
        self._failed, self._not_before_s = "", 0.0

    def build_if_due(self, snapshot: Snapshot) -> None:
        """Start a build in the background if the snapshot, the newest, needs one.

        Call it from one thread only.
        """
        due = snapshot.index is None or snapshot.index.is_due(snapshot.rows)
        failed = snapshot.file == self._failed and time.monotonic() < self._not_before_s
        if snapshot.rows <= self._max_unindexed or not due or self._working or failed:
            return
        self._working = True
        # A daemon thread, because a stopping service need not wait: the index file is complete or absent.
        threading.Thread(target=self._work, args=(snapshot,), name="index", daemon=True).start()

    def _work(self, snapshot: Snapshot) -> None:
        try:
            lower_thread_priority()
            started_s = time.monotonic()
            basis, user_vectors = self._recommender.query_subspace(snapshot.vectors)
            index = load_or_build(self._catalogue.path, snapshot.file, snapshot.vectors, basis, user_vectors)
            if index.rows > snapshot.rows:  # built by another process, with edits that were not read here yet
                self._catalogue.snapshot()
            self._catalogue.attach_index(snapshot.file, index)
            _log.info(
                "catalogue is indexed",
                catalogue=snapshot.name,
                rows=index.rows,
                searched=f"1 list of {index.probes}",
                recall=round(index.recall, 3),
                seconds=round(time.monotonic() - started_s, 1),
            )
        except Exception as error:
            self._failed, self._not_before_s = snapshot.file, time.monotonic() + _RETRY_S
            _log.error("catalogue cannot be indexed", catalogue=snapshot.name, **describe_fault(error))
        finally:
            self._working = False
