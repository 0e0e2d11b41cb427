"""The replicas, threads and batches for this machine, chosen by measuring.

First come the layouts, with batches as the settings have them. Then, in the best layout, come the padded tokens and
the texts of a batch. Of choices that are nearly as fast as the fastest, the smallest wins: it needs less memory or
answers sooner, and a difference of a few per cent is noise. This module knows what to try and what to choose.
`throughput` measures.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from models.bundle import Bundle
from service.settings import Settings
from service.tuning.search import doubling, search_while_gaining, smallest_near_best
from service.tuning.throughput import CONCURRENCY, MAX_LENGTH, MIN_LENGTH, Layout, ReplicaProcesses

MIN_TOKENS = {"cpu": 40, "cuda": 512}
"""The smallest token budget of a batch that is tried, by device."""

SERVING_BYTES = 130 * 2**20
"""Memory that a replica needs in addition to a measuring process: Ray, FastAPI and more."""

CLUSTER_BYTES = 450 * 2**20
"""Memory of the other processes of a service: HAProxy and those of Ray."""


class TuneError(Exception):
    """This machine cannot be measured as requested. The message is one line."""


@dataclass(frozen=True, slots=True)
class TunedBatch:
    """Limits of a batch."""

    items: int
    tokens: int  # with padding


@dataclass(frozen=True, slots=True)
class TuningRun:
    """The conditions of each trial: the bundle, the settings, the duration and the log."""

    bundle: Bundle
    settings: Settings
    seconds: float
    log: Callable[[str], None]

    def start_replicas(self, layout: Layout) -> ReplicaProcesses:
        return ReplicaProcesses(self.bundle.path, layout, self.settings.device)

    def measure_rate(self, replicas: ReplicaProcesses, layout: Layout, batch: TunedBatch) -> float:
        """Return the tokens per second of the replicas, and log them."""
        rate = replicas.tokens_per_s(batch.tokens, batch.items, self.seconds)
        self.log(format_row(layout.replicas, layout.threads, batch.items, batch.tokens, f"{rate:,.0f}"))
        return rate


def format_row(*cells: object) -> str:
    """Return one line of the table of trials."""
    return "".join(f"{cell!s:>14}" for cell in cells)


HEADER = format_row("replicas", "threads", "batch items", "batch tokens", "tokens/s")


def tune(run: TuningRun, cores: int, memory_bytes: int) -> Mapping[str, int]:
    """Return the settings to use, by name.

    Raises ThroughputError, or TuneError if not even one replica fits into the memory.
    """
    device = run.settings.device
    if device == "cuda":
        run.log("On a GPU only the batch of one replica is measured. HEED_REPLICAS and HEED_THREADS stay unchanged.")
    layout = Layout(1, 1) if device == "cuda" else _best_layout(run, cores, memory_bytes)
    with run.start_replicas(layout) as replicas:
        batch = _best_batch(run, replicas, layout)
    chosen = {"batch_tokens": batch.tokens, "batch_items": batch.items}
    return chosen if device == "cuda" else {"replicas": layout.replicas, "threads": layout.threads, **chosen}


def _best_layout(run: TuningRun, cores: int, memory_bytes: int) -> Layout:
    batch = TunedBatch(run.settings.batch_items, run.settings.batch_tokens)
    pss_bytes = 0

    def rate(layout: Layout) -> float:
        nonlocal pss_bytes
        with run.start_replicas(layout) as replicas:
            result = run.measure_rate(replicas, layout, batch)
            pss_bytes = max(pss_bytes, replicas.pss_bytes)
        return result

    readings = search_while_gaining([Layout(1, 1)], rate)
    max_replicas = count_fitting_replicas(pss_bytes, memory_bytes)
    if max_replicas == 0:
        raise TuneError(f"a replica needs {_mib(pss_bytes + SERVING_BYTES)}; {_mib(memory_bytes)} of memory are free")
    if max_replicas < cores:
        run.log(
            f"{_mib(memory_bytes)} of memory are free: at most {max_replicas} replicas of {_mib(pss_bytes)} or more"
        )
    single_threaded, multi_threaded = candidate_layouts(cores, max_replicas)
    readings = search_while_gaining(single_threaded, rate, readings)
    return smallest_near_best(search_while_gaining(multi_threaded, rate, readings))


def _best_batch(run: TuningRun, replicas: ReplicaProcesses, layout: Layout) -> TunedBatch:
    def rate(batch: TunedBatch) -> float:
        return run.measure_rate(replicas, layout, batch)

    device = run.settings.device
    max_items = CONCURRENCY[device] // 2
    budgets = doubling(MIN_TOKENS[device], max_items * MAX_LENGTH)
    tokens = smallest_near_best(
        search_while_gaining([TunedBatch(max_items, budget) for budget in budgets], rate)
    ).tokens
    sizes = doubling(1, min(max_items, tokens // MIN_LENGTH))
    return smallest_near_best(search_while_gaining([TunedBatch(items, tokens) for items in sizes], rate))


def candidate_layouts(cores: int, max_replicas: int) -> tuple[list[Layout], list[Layout]]:
    """Return the layouts to try besides one replica with one thread: first those with one thread each, then the rest.

    Half as many replicas as cores are tried too, because with hyper-threading two cores may be one.
    """
    counts = sorted({min(max_replicas, cores // 2), min(max_replicas, cores)} - {0, 1})
    threads = [count for count in doubling(2, cores) if count <= cores]
    multi_threaded = [Layout(min(max_replicas, cores // count), count) for count in threads]
    return [Layout(replicas, 1) for replicas in counts], multi_threaded


def count_fitting_replicas(pss_bytes: int, memory_bytes: int) -> int:
    """Return how many replicas fit beside the rest of a service, if a measuring process needs `pss_bytes`."""
    return max(0, (memory_bytes - CLUSTER_BYTES) // (pss_bytes + SERVING_BYTES))


def usable_cores(requested: int | None) -> int:
    """Return the requested cores, or all that this process may use. Raises TuneError if it may not use that many."""
    allowed = len(os.sched_getaffinity(0))
    if requested is not None and requested > allowed:
        raise TuneError(f"{requested} cores: this process may use {allowed}")
    return requested or allowed


def busy_warning(cores: int) -> str | None:
    """Return a warning if other programs use the machine, because they distort the readings."""
    load = os.getloadavg()[0]
    if load < cores / 4:
        return None
    return f"This machine is busy (load {load:.1f}, {cores} cores). Measure again when it is idle."


def free_memory_bytes() -> int:
    """Return the free memory of the machine, or of the container if that has less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (allowed := limit.read_text().strip()).isdigit():
        free = min(free, int(allowed) - int(used.read_text()))
    return free


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
