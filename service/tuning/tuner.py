"""Replicas, threads and batches for this machine, chosen by measuring.

Layouts first, with batches as they are set; then, in the best of them, padded tokens and texts of a batch. Of what is
hardly faster than less of it, the least is taken: it costs less memory, or answers sooner, and a difference of a few
per cent is noise. Knows what to try and what to choose; measuring is `throughput`'s.
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
"""The smallest budget of a batch that is tried."""

SERVING_BYTES = 130 * 2**20
"""What a replica holds beside what measuring holds: Ray, FastAPI and more."""

CLUSTER_BYTES = 450 * 2**20
"""What the other processes of a service hold: HAProxy and those of Ray."""


class TuneError(Exception):
    """This machine cannot be measured as asked; the message is one line."""


@dataclass(frozen=True, slots=True)
class Batch:
    items: int
    tokens: int


@dataclass(frozen=True, slots=True)
class TuningRun:
    """How each trial is made: what it asks, for how long, and who is told of its result."""

    bundle: Bundle
    settings: Settings
    seconds: float
    tell: Callable[[str], None]

    def replicas(self, layout: Layout) -> ReplicaProcesses:
        return ReplicaProcesses(self.bundle.path, layout, self.settings.device)

    def rate(self, started: ReplicaProcesses, layout: Layout, batch: Batch) -> float:
        rate = started.tokens_per_s(batch.tokens, batch.items, self.seconds)
        self.tell(row(layout.replicas, layout.threads, batch.items, batch.tokens, f"{rate:,.0f}"))
        return rate


def row(*cells: object) -> str:
    return "".join(f"{cell!s:>14}" for cell in cells)


HEADER = row("replicas", "threads", "batch items", "batch tokens", "tokens/s")


def tune(trials: TuningRun, cores: int, memory_bytes: int) -> Mapping[str, int]:
    """The settings to use, by name; raises ThroughputError, or TuneError when not even one replica has room."""
    device = trials.settings.device
    if device == "cuda":
        trials.tell(
            "On a GPU only the batch of one replica is measured; HEED_REPLICAS and HEED_THREADS stay as they are."
        )
    layout = Layout(1, 1) if device == "cuda" else _best_layout(trials, cores, memory_bytes)
    with trials.replicas(layout) as started:
        batch = _best_batch(trials, started, layout)
    chosen = {"batch_tokens": batch.tokens, "batch_items": batch.items}
    return chosen if device == "cuda" else {"replicas": layout.replicas, "threads": layout.threads, **chosen}


def _best_layout(trials: TuningRun, cores: int, memory_bytes: int) -> Layout:
    batch = Batch(trials.settings.batch_items, trials.settings.batch_tokens)
    pss_bytes = 0

    def rate(layout: Layout) -> float:
        nonlocal pss_bytes
        with trials.replicas(layout) as started:
            found = trials.rate(started, layout, batch)
            pss_bytes = max(pss_bytes, started.pss_bytes)
        return found

    found = search_while_gaining([Layout(1, 1)], rate)
    most = fitting(pss_bytes, memory_bytes)
    if most == 0:
        raise TuneError(f"a replica takes {_mib(pss_bytes + SERVING_BYTES)}; {_mib(memory_bytes)} of memory are free")
    if most < cores:
        trials.tell(f"{_mib(memory_bytes)} of memory are free: at most {most} replicas of {_mib(pss_bytes)} and more")
    alone, threaded = layouts(cores, most)
    found = search_while_gaining(alone, rate, found)
    return smallest_near_best(search_while_gaining(threaded, rate, found))


def _best_batch(trials: TuningRun, started: ReplicaProcesses, layout: Layout) -> Batch:
    def rate(batch: Batch) -> float:
        return trials.rate(started, layout, batch)

    device = trials.settings.device
    most = CONCURRENCY[device] // 2
    budgets = doubling(MIN_TOKENS[device], most * MAX_LENGTH)
    tokens = smallest_near_best(search_while_gaining([Batch(most, budget) for budget in budgets], rate)).tokens
    return smallest_near_best(
        search_while_gaining([Batch(items, tokens) for items in doubling(1, min(most, tokens // MIN_LENGTH))], rate)
    )


def layouts(cores: int, most: int) -> tuple[list[Layout], list[Layout]]:
    """What to try beside one replica of one thread, at most `most` replicas: of one thread each, and of more.

    Half as many replicas as cores are tried too, because two cores may be one with hyper-threading.
    """
    alone = [Layout(replicas, 1) for replicas in sorted({min(most, cores // 2), min(most, cores)} - {0, 1})]
    threads = [number for number in doubling(2, cores) if number <= cores]
    return alone, [Layout(min(most, cores // number), number) for number in threads]


def fitting(pss_bytes: int, memory_bytes: int) -> int:
    """Replicas that have room beside the rest of a service, when measuring held so much for one."""
    return max(0, (memory_bytes - CLUSTER_BYTES) // (pss_bytes + SERVING_BYTES))


def usable_cores(asked: int | None) -> int:
    """So many, or all that this process may use; raises TuneError when it may not use that many."""
    allowed = len(os.sched_getaffinity(0))
    if asked is not None and asked > allowed:
        raise TuneError(f"{asked} cores: this process may use {allowed}")
    return asked or allowed


def busy(cores: int) -> str | None:
    """What to say when others use the machine, for the readings are then theirs too."""
    load = os.getloadavg()[0]
    if load < cores / 4:
        return None
    return f"This machine is busy (load {load:.1f}, {cores} cores): measure again when it is not."


def free_memory_bytes() -> int:
    """Of the machine, or of the container when that has less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and (allowed := limit.read_text().strip()).isdigit():
        free = min(free, int(allowed) - int(used.read_text()))
    return free


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
