"""The workloads, with their names in options and titles in tables. Independent of the contenders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """A closed loop over `connections`. With `load`, an open loop at that share of the measured capacity."""

    name: str
    title: str
    texts: str  # name of the text set
    connections: int = 0
    texts_per_request: int = 1
    load: float | None = None  # share of the rate of the same contender in CAPACITY, just before
    deadline_s: float = 10.0
    peers: bool = True  # whether peers run it; False shortens a round where only the limit is compared
    usual: bool = True  # whether it runs by default


CAPACITY = "short-64"

# In the order of a turn. Overload comes last, because its backlog outlives it.
WORKLOADS = (
    Workload("short-1", "short, 1 connection", "short", connections=1),
    Workload("short-16", "short, 16 connections", "short", connections=16, peers=False),
    Workload(CAPACITY, "short, 64 connections", "short", connections=64),
    Workload("mixed-64", "mixed, 64 connections", "mixed", connections=64),
    Workload(
        "batch-32", "short, 32 per request, 8 connections", "short", connections=8, texts_per_request=32, peers=False
    ),
    Workload("short-512", "short, 512 connections", "short", connections=512, usual=False),
    Workload(
        *("batch-32-64", "short, 32 per request, 64 connections", "short"),
        connections=64,
        texts_per_request=32,
        usual=False,
    ),
    Workload("open-80", "short, arrivals at 80 % of capacity", "short", load=0.8),
    Workload(
        "open-150",
        "short, arrivals at 150 % of capacity, 1 s deadline",
        "short",
        load=1.5,
        deadline_s=1.0,
        peers=False,
    ),
)


def choose_workloads(names: Sequence[str] | None, of_peer: bool) -> list[Workload]:
    """Return the named workloads, or the default ones of the contender. Open loops need CAPACITY, so it is added."""

    def is_chosen(workload: Workload) -> bool:
        return workload.name in names if names else workload.usual and (workload.peers or not of_peer)

    has_open_loop = any(workload.load is not None for workload in WORKLOADS if is_chosen(workload))
    return [workload for workload in WORKLOADS if is_chosen(workload) or (has_open_loop and workload.name == CAPACITY)]
