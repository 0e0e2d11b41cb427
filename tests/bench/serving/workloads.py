"""What is asked of every contender, and how each workload is named in options and tables. Knows no contender."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """A closed loop over so many connections; or, with a load, arrivals at that share of the measured capacity."""

    name: str
    title: str
    texts: str  # name of the text set
    connections: int = 0
    texts_per_request: int = 1
    load: float | None = None  # of what the same contender answered to CAPACITY a moment before
    deadline_s: float = 10.0
    peers: bool = True  # asked of them too; what is held against the limit alone is not, to keep a round short
    usual: bool = True  # asked when nobody names workloads


CAPACITY = "short-64"

# In the order of a turn: what overloads comes last, because its backlog outlives it.
WORKLOADS = (
    Workload("short-1", "short, 1 connection", "short", connections=1),
    Workload("short-16", "short, 16 connections", "short", connections=16, peers=False),
    Workload(CAPACITY, "short, 64 connections", "short", connections=64),
    Workload("mixed-64", "mixed, 64 connections", "mixed", connections=64),
    Workload(
        "batch-32", "short, 32 a request, 8 connections", "short", connections=8, texts_per_request=32, peers=False
    ),
    Workload("short-512", "short, 512 connections", "short", connections=512, usual=False),
    Workload(
        *("batch-32-64", "short, 32 a request, 64 connections", "short"),
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


def chosen(names: Sequence[str] | None, of_peer: bool) -> list[Workload]:
    """The named ones, or all that are meant for this contender; with the one that gives arrivals their rate."""
    found = [one for one in WORKLOADS if (one.name in names if names else one.usual and (one.peers or not of_peer))]
    arriving = any(one.load is not None for one in found)
    return [one for one in WORKLOADS if one in found or (arriving and one.name == CAPACITY)]
