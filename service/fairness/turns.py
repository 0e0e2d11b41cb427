"""The order of turns among flows that wait, by the tokens that each has had.

This is start-time fair queueing (Goyal, Vin and Cheng, 1996) with a head start for newcomers, as in borrowed virtual
time (Duda and Cheriton, 1999). It needs no timer, and it forgets a flow that leaves.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_MAX_SHARES = 8  # flows that the clock counts; a flow in its second turn gets at least a ninth beside newcomers
_SAMPLE = 64


@dataclass(slots=True, eq=False)
class Flow:
    """Someone with tokens that wait. `due` says when its next turn is due, on the clock of its order."""

    tokens: int = field(default=0, init=False)
    due: float = field(default=0.0, init=False)
    arrival: int = field(default=0, init=False)
    is_new: bool = field(default=True, init=False)


FlowType = TypeVar("FlowType", bound=Flow)


class FairOrder(Generic[FlowType]):
    """Flows, the one with the next turn first.

    Its clock counts the tokens that a flow would have had with an equal share since the beginning. A flow that comes
    starts at the clock, so time without work earns nothing. Until its first turn it goes ahead of flows that were due
    up to `head_start` tokens earlier. Among newcomers the oldest is first.
    """

    __slots__ = ("_arrivals", "_clock", "_entries", "_head_start", "_newcomers")

    def __init__(self, head_start: float) -> None:
        self._head_start = head_start
        self._clock = 0.0  # tokens
        self._arrivals = 0
        self._newcomers = 0
        self._entries: list[tuple[float, int, FlowType]] = []  # sorted; arrivals differ, so flows are not compared

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[FlowType]:
        """Iterate in the order of turns; the flows must not change meanwhile."""
        return (flow for _, _, flow in self._entries)

    def first(self, count: int) -> list[FlowType]:
        """Return at most `count` flows, those with the next turns first."""
        return [flow for _, _, flow in self._entries[:count]]

    def add(self, flow: FlowType) -> None:
        """Let a flow wait for its first turn."""
        self._arrivals += 1
        self._newcomers += 1
        flow.due, flow.arrival = self._clock - self._head_start, self._arrivals
        insort(self._entries, (flow.due, flow.arrival, flow))

    def remove(self, flow: FlowType) -> None:
        """Take out a flow that no longer waits."""
        entries = self._entries
        if entries[0][2] is flow:  # the usual case
            del entries[0]
        else:
            del entries[bisect_left(entries, (flow.due, flow.arrival, flow))]
        self._newcomers -= flow.is_new

    def charge(self, flow: FlowType, tokens: int, is_last: bool) -> None:
        """Count the tokens of a turn of the flow, which leaves if it `is_last`."""
        entries = self._entries
        self._clock += tokens / min(len(entries), _MAX_SHARES)
        self.remove(flow)
        if not is_last:
            if flow.is_new:
                flow.due += self._head_start
                flow.is_new = False
            flow.due += tokens
            insort(entries, (flow.due, flow.arrival, flow))
        if entries and not self._newcomers:  # then the clock is not before or behind all of them
            self._clock = min(max(self._clock, entries[0][0]), entries[-1][0])

    def tokens_ahead(self, waiting_tokens: int, share: int, own: FlowType | None = None) -> int:
        """Return about how many tokens the flows other than `own` have until one has had `share` tokens.

        `waiting_tokens` are those of all other flows. A long order is judged by the flows with the next turns.
        """
        sample = [flow.tokens for flow in self.first(_SAMPLE) if flow is not own]
        if not sample:
            return 0
        others = len(self._entries) - (own is not None)
        return min(waiting_tokens, sum(min(tokens, share) for tokens in sample) * others // len(sample))
