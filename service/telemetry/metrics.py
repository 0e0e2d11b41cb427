"""Every metric, its name, labels and buckets, and the one place where they are recorded and read.

Each process of a node writes to its own memory-mapped files in one shared folder, and any of them renders the sum: a
scrape that reaches one replica at random still sees them all, and what a killed replica counted stays counted.
This knows prometheus-client; it does not know who calls it. Label values are bounded by construction.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.telemetry.batch_report import BatchReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_SHORT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, *_SECONDS)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_RATIOS = (1.0, 1.02, 1.05, 1.1, 1.15, 1.25, 1.5, 2.0, 4.0)


class MetricsError(Exception):
    """The folder for metrics cannot be used; the message is one line."""


class Metrics:
    """One per process: prometheus-client keeps where values live in a module variable, and this sets it."""

    def __init__(self, directory: Path) -> None:
        self._directory = _private(directory)
        # The library takes the folder from the environment and the kind of value at its first import, by which time
        # some other library may have imported it. Setting both here makes the folder a setting like any other.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
        process_id = os.getpid()  # asked for at every count otherwise, in case the process has forked; ours do not
        values.ValueClass = values.MultiProcessValue(lambda: process_id)  # type: ignore[no-untyped-call]
        unread = CollectorRegistry()  # written through the values, read through the files
        self._requests = Counter("heed_requests", "Requests answered.", ["route", "status"], registry=unread)
        self._request_seconds = Histogram(
            "heed_request_seconds", "From request to answer.", ["route"], registry=unread, buckets=_SECONDS
        )
        self._items = Counter("heed_items", "Texts answered, by outcome.", ["task", "outcome"], registry=unread)
        self._shared = Counter(
            "heed_items_shared",
            "Texts answered with an identical one's answer.",
            ["task"],
            registry=unread,
        )
        self._cached = Counter("heed_items_cached", "Texts answered from the cache.", ["task"], registry=unread)
        self._cache_entries = Gauge(
            "heed_cache_entries", "Answers in the cache.", ["task"], registry=unread, multiprocess_mode="livesum"
        )
        self._bundle = Gauge(
            "heed_bundle_info",
            "Bundle that is served.",
            ["task", "model", "version", "digest"],
            registry=unread,
            multiprocess_mode="livemax",
        )
        self._depth = Gauge(
            "heed_queue_depth", "Texts that wait.", ["task"], registry=unread, multiprocess_mode="livesum"
        )
        self._tokenize = _histogram("heed_tokenize_seconds", "Tokenising one request.", _SHORT_SECONDS, unread)
        self._queue = _histogram("heed_queue_seconds", "Waiting of one text.", _SHORT_SECONDS, unread)
        self._infer = _histogram("heed_infer_seconds", "One call of the model.", _SHORT_SECONDS, unread)
        self._batch_items = _histogram("heed_batch_items", "Texts in one batch.", _ITEMS, unread)
        self._tokens = Counter("heed_tokens", "Tokens that the model read, without padding.", ["task"], registry=unread)
        self._batch_tokens = _histogram("heed_batch_tokens", "Padded tokens in one batch.", _TOKENS, unread)
        self._padding = _histogram("heed_padding_ratio", "Padded over real tokens of one batch.", _RATIOS, unread)
        self._call_items = _histogram("heed_call_items", "Texts in one call of a model replica.", _ITEMS, unread)
        self._call_seconds = _histogram("heed_call_seconds", "One call of a model replica.", _SHORT_SECONDS, unread)

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def bundle(self, task: str, model: str, version: str, digest: str) -> None:
        self._bundle.labels(task, model, version, digest).set(1)

    def task(self, task: str) -> TaskMetrics:
        return TaskMetrics(
            task,
            items=self._items,
            shared=self._shared.labels(task),
            cached=self._cached.labels(task),
            cache_entries=self._cache_entries.labels(task),
            depth=self._depth.labels(task),
            tokenize=self._tokenize.labels(task),
            queue=self._queue.labels(task),
            infer=self._infer.labels(task),
            batch_items=self._batch_items.labels(task),
            tokens=self._tokens.labels(task),
            batch_tokens=self._batch_tokens.labels(task),
            padding=self._padding.labels(task),
        )

    def calls(self, task: str) -> CallMetrics:
        return CallMetrics(self._call_items.labels(task), self._call_seconds.labels(task))

    def render(self) -> bytes:
        """Prometheus text over all processes of the folder; gauges of those that died are swept first."""
        for path in self._directory.glob("gauge_live*_*.db"):
            process_id = int(path.stem.rsplit("_", 1)[1])
            if not _alive(process_id):
                mark_process_dead(process_id, str(self._directory))  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(self._directory))  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class TaskMetrics:
    """What the cache and the engine of one task record, its label already resolved: this is the hot path."""

    def __init__(
        self,
        task: str,
        *,
        items: Counter,
        shared: Counter,
        cached: Counter,
        cache_entries: Gauge,
        depth: Gauge,
        tokenize: Histogram,
        queue: Histogram,
        infer: Histogram,
        batch_items: Histogram,
        tokens: Counter,
        batch_tokens: Histogram,
        padding: Histogram,
    ) -> None:
        self._task = task
        self._items = items
        self._shared = shared
        self._cached = cached
        self._cache_entries = cache_entries
        self._depth = depth
        self._tokenize = tokenize
        self._queue = queue
        self._infer = infer
        self._batch_items = batch_items
        self._tokens = tokens
        self._batch_tokens = batch_tokens
        self._padding = padding
        depth.set(0)

    def outcomes(self, codes: Iterable[str]) -> None:
        """ "ok" or the code of a problem, one per text."""
        for code in codes:
            self._items.labels(self._task, code).inc()

    def shared(self, items: int) -> None:
        self._shared.inc(items)

    def cached(self, items: int) -> None:
        self._cached.inc(items)

    def cache_entries(self, entries: int) -> None:
        self._cache_entries.set(entries)

    def tokenized(self, seconds: float) -> None:
        self._tokenize.observe(seconds)

    def depth(self, waiting: int) -> None:
        self._depth.set(waiting)

    def batch(self, report: BatchReport) -> None:
        for queued_s in report.queued_s:
            self._queue.observe(queued_s)
        self._infer.observe(report.infer_s)
        self._batch_items.observe(len(report.queued_s))
        self._tokens.inc(report.tokens)
        self._batch_tokens.observe(report.padded_tokens)
        self._padding.observe(report.padded_tokens / report.tokens)


class CallMetrics:
    """What a gateway records of its calls to model replicas: how many texts share one, and how long it takes."""

    def __init__(self, items: Histogram, seconds: Histogram) -> None:
        self._items = items
        self._seconds = seconds

    def call(self, items: int, seconds: float) -> None:
        self._items.observe(items)
        self._seconds.observe(seconds)


def _private(directory: Path) -> Path:
    """The folder, made if missing; refused when another user owns it, who could read or forge the numbers."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.getuid():
            raise MetricsError(f"HEED_METRICS_DIR: {directory} belongs to another user")
    except OSError as error:
        raise MetricsError(f"HEED_METRICS_DIR: {directory} cannot be used: {error.strerror}") from None
    return directory


def _histogram(name: str, text: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(name, text, ["task"], registry=registry, buckets=buckets)


def _alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
