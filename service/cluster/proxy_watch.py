"""The watch over HAProxy: what it refuses by itself, and how many replicas it sends requests to.

No gateway sees a request that HAProxy refuses. So the process behind `heed serve` reads HAProxy's statistics each
second, adds the refusals to the metrics, and logs a summary of them.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from service.cluster.haproxy import ProxyStats, read_stats
from service.telemetry.metrics import Metrics

_INTERVAL_S = 1.0
_SUMMARY_S = 10.0
_log = structlog.get_logger(__name__)


class ProxyWatch:
    """The watch over the HAProxys behind some admin sockets, which may come and go."""

    def __init__(
        self,
        find_sockets: Callable[[], Iterable[Path]],
        replicas: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch for `replicas` replicas. `clock` is in seconds."""
        self._find_sockets = find_sockets
        self._replicas = self._live = replicas
        self._metrics = metrics
        self._clock = clock
        self._counted: dict[tuple[int, str], int] = {}  # by process and class of statuses
        self._unreported: Counter[str] = Counter()
        self._reported_s = clock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        metrics.count_proxy_refusals("4xx", 0)
        metrics.count_proxy_refusals("5xx", 0)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._watch, name="proxy-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Log what is not logged yet, and end."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_INTERVAL_S)
        self._report()

    def look(self) -> None:
        """Read the statistics once, count what is new, and log what is due."""
        readings = [stats for path in self._find_sockets() if (stats := read_stats(path)) is not None]
        for stats in readings:
            self._count(stats)
        if self._clock() - self._reported_s >= _SUMMARY_S:
            self._report()
        live = sum(stats.live_servers for stats in readings)
        if live != self._live:
            self._live = live
            log = _log.warning if live < self._replicas else _log.info
            log("replicas in service", replicas=live, expected=self._replicas)

    def _count(self, stats: ProxyStats) -> None:
        """Count the new refusals of an HAProxy. A process that took over from another begins at 0."""
        for statuses, refused in stats.refused.items():
            # Read at slightly different moments, the figures of HAProxy may be too low by the answers under way.
            new = refused - self._counted.get((stats.process_id, statuses), 0)
            if new > 0:
                self._counted[stats.process_id, statuses] = refused
                self._metrics.count_proxy_refusals(statuses, new)
                self._unreported[statuses] += new

    def _report(self) -> None:
        seconds = round(self._clock() - self._reported_s)
        self._reported_s = self._clock()
        if self._unreported:
            counts = {f"answers_{statuses}": count for statuses, count in sorted(self._unreported.items())}
            _log.warning("proxy refused requests", **counts, seconds=seconds)
            self._unreported.clear()

    def _watch(self) -> None:
        while not self._stopped.wait(_INTERVAL_S):
            self.look()
