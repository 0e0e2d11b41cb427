"""All metrics with their names, labels and buckets, and the code that records and reads them.

Each process of a node writes its own memory-mapped files in one shared folder, and any of them renders the sum. So a
scrape that reaches a random replica sees all of them, and the counts of a killed replica stay. Only this module knows
prometheus-client, and it does not know its callers. Label values are bounded by construction.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.telemetry.batch_report import BatchReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_log = structlog.get_logger(__name__)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_SHORT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, *_SECONDS)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_RATIOS = (1.0, 1.02, 1.05, 1.1, 1.15, 1.25, 1.5, 2.0, 4.0)


class MetricsError(Exception):
    """The folder for metrics cannot be used. The message is one line."""


class Metrics:
    """The metrics of a process. Make one per process: it sets a module variable of prometheus-client."""

    def __init__(self, directory: Path) -> None:
        self._directory = _open_private_folder(directory)
        self._collector = _RegularFilesCollector(directory)
        # At its first import, the library reads the folder from the environment and chooses the kind of value. Another
        # library may have imported it already. Setting both here makes the folder an ordinary setting.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
        process_id = os.getpid()  # the default asks at every count in case the process has forked; these never do
        values.ValueClass = values.MultiProcessValue(lambda: process_id)  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()  # never rendered: values are written to files and read from there
        self._requests = Counter("heed_requests", "Requests answered.", ["route", "status"], registry=registry)
        self._request_seconds = Histogram(
            "heed_request_seconds", "From request to answer.", ["route"], registry=registry, buckets=_SECONDS
        )
        self._bundle = Gauge(
            "heed_bundle_info",
            "Bundle that is served.",
            ["task", "model", "version", "digest"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._proxy_refusals = Counter(
            "heed_proxy_refusals", "Answers that HAProxy gave by itself.", ["statuses"], registry=registry
        )
        self._task_collectors = _TaskCollectors(registry)
        self._call_items = _histogram("heed_call_items", "Texts in one call of a model replica.", _ITEMS, registry)
        self._call_seconds = _histogram("heed_call_seconds", "One call of a model replica.", _SHORT_SECONDS, registry)

    def record_request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._request_seconds.labels(route).observe(seconds)

    def count_proxy_refusals(self, statuses: str, refusals: int) -> None:
        """Count requests that HAProxy answered by itself; `statuses` is "4xx" or "5xx"."""
        self._proxy_refusals.labels(statuses).inc(refusals)

    def set_bundle(self, task: str, model: str, version: str, digest: str) -> None:
        self._bundle.labels(task, model, version, digest).set(1)

    def task(self, task: str) -> TaskMetrics:
        """Return the metrics of one task."""
        return TaskMetrics(task, self._task_collectors)

    def calls(self, task: str) -> CallMetrics:
        """Return the metrics of a gateway's calls to the replicas of one task."""
        return CallMetrics(self._call_items.labels(task), self._call_seconds.labels(task))

    def render(self) -> bytes:
        """Return Prometheus text over all processes of the folder, without the gauges of processes that died."""
        for path in self._directory.glob("gauge_live*_*.db"):
            process_id = path.stem.rsplit("_", 1)[1]
            if process_id.isdecimal() and not _is_alive(int(process_id)):
                mark_process_dead(int(process_id), str(self._directory))  # type: ignore[no-untyped-call]
        registry = CollectorRegistry()
        registry.register(self._collector)
        return generate_latest(registry)


class _RegularFilesCollector(MultiProcessCollector):
    """The values in the regular files of a folder. To open anything else that has such a name may block for good."""

    def __init__(self, directory: Path) -> None:
        super().__init__(None, str(directory))  # type: ignore[no-untyped-call]
        self._directory = directory
        self._skipped: set[Path] = set()

    def collect(self) -> Iterable[Metric]:
        paths = sorted(self._directory.glob("*.db"))
        for path in paths:
            if path.exists() and not path.is_file() and path not in self._skipped:
                self._skipped.add(path)
                _log.error("this is no regular file and is left out of the metrics", file=path.name)
        files = [str(path) for path in paths if path.is_file()]
        metrics: Iterable[Metric] = self.merge(files)  # type: ignore[no-untyped-call]
        return metrics


class _TaskCollectors:
    """The collectors of all tasks, which have the task as a label."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.items = Counter("heed_items", "Texts answered, by outcome.", ["task", "outcome"], registry=registry)
        self.shared = Counter(
            "heed_items_shared", "Texts answered with an identical one's answer.", ["task"], registry=registry
        )
        self.cached = Counter("heed_items_cached", "Texts answered from the cache.", ["task"], registry=registry)
        self.cache_entries = Gauge(
            "heed_cache_entries", "Answers in the cache.", ["task"], registry=registry, multiprocess_mode="livesum"
        )
        self.depth = Gauge(
            "heed_queue_depth", "Texts that wait.", ["task"], registry=registry, multiprocess_mode="livesum"
        )
        self.tokenize = _histogram("heed_tokenize_seconds", "Tokenising one request.", _SHORT_SECONDS, registry)
        self.queue = _histogram("heed_queue_seconds", "Waiting of one text.", _SHORT_SECONDS, registry)
        self.infer = _histogram("heed_infer_seconds", "One call of the model.", _SHORT_SECONDS, registry)
        self.batch_items = _histogram("heed_batch_items", "Texts in one batch.", _ITEMS, registry)
        self.tokens = Counter(
            "heed_tokens", "Tokens that the model read, without padding.", ["task"], registry=registry
        )
        self.batch_tokens = _histogram("heed_batch_tokens", "Padded tokens in one batch.", _TOKENS, registry)
        self.padding = _histogram("heed_padding_ratio", "Padded over real tokens of one batch.", _RATIOS, registry)


class TaskMetrics:
    """The metrics that the cache and the engine of one task record. Labels are resolved here, off the hot path."""

    def __init__(self, task: str, collectors: _TaskCollectors) -> None:
        self._task = task
        self._items = collectors.items
        self._shared = collectors.shared.labels(task)
        self._cached = collectors.cached.labels(task)
        self._cache_entries = collectors.cache_entries.labels(task)
        self._depth = collectors.depth.labels(task)
        self._tokenize = collectors.tokenize.labels(task)
        self._queue = collectors.queue.labels(task)
        self._infer = collectors.infer.labels(task)
        self._batch_items = collectors.batch_items.labels(task)
        self._tokens = collectors.tokens.labels(task)
        self._batch_tokens = collectors.batch_tokens.labels(task)
        self._padding = collectors.padding.labels(task)
        self._depth.set(0)

    def count_outcomes(self, codes: Iterable[str]) -> None:
        """Count texts by outcome: "ok" or the code of a problem, one per text."""
        for code in codes:
            self._items.labels(self._task, code).inc()

    def count_shared(self, items: int) -> None:
        self._shared.inc(items)

    def count_cached(self, items: int) -> None:
        self._cached.inc(items)

    def set_cache_entries(self, entries: int) -> None:
        self._cache_entries.set(entries)

    def record_tokenization(self, seconds: float) -> None:
        self._tokenize.observe(seconds)

    def set_depth(self, waiting: int) -> None:
        self._depth.set(waiting)

    def record_batch(self, report: BatchReport) -> None:
        for queued_s in report.queued_s:
            self._queue.observe(queued_s)
        self._infer.observe(report.infer_s)
        self._batch_items.observe(len(report.queued_s))
        self._tokens.inc(report.tokens)
        self._batch_tokens.observe(report.padded_tokens)
        self._padding.observe(report.padded_tokens / report.tokens)


class CallMetrics:
    """The metrics of a gateway's calls to model replicas: texts per call and seconds per call."""

    def __init__(self, items: Histogram, seconds: Histogram) -> None:
        self._items = items
        self._seconds = seconds

    def record_call(self, items: int, seconds: float) -> None:
        self._items.observe(items)
        self._seconds.observe(seconds)


def _open_private_folder(directory: Path) -> Path:
    """Return the folder, made if missing.

    Raises:
        MetricsError: It cannot be used, or its owner is another user, who could read or forge the numbers.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.getuid():
            raise MetricsError(f"HEED_METRICS_DIR: {directory} belongs to another user")
    except OSError as error:
        raise MetricsError(f"HEED_METRICS_DIR: {directory} cannot be used: {error.strerror}") from None
    return directory


def _histogram(name: str, documentation: str, buckets: tuple[float, ...], registry: CollectorRegistry) -> Histogram:
    return Histogram(name, documentation, ["task"], registry=registry, buckets=buckets)


def _is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
