"""The bounded queue of a batcher, the items that wait in it, and whose turn it is.

Clients take turns, and the requests of a client take turns (`service.fairness.turns`). A batch starts with the item
that has the next turn, and items of near length join it. They count as turns of their requests too.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Generic, TypeVar

from service.errors import Overloaded, Problem
from service.fairness.client import CLIENT
from service.fairness.turns import FairOrder, Flow, FlowType
from service.inference.admission import ThroughputEstimator
from service.inference.batch_policy import BatchLimits, InferenceResult, Sized, next_batch
from service.telemetry.logs import REQUEST_ID

_WINDOW = 256  # the items that a batch is chosen from, which bounds the search when the queue is long
_PARTS = 8  # a request counts in the queue with at most one of so many parts; its other items wait behind these

Work = TypeVar("Work", bound=Sized)
Row = TypeVar("Row")


@dataclass(slots=True, eq=False)
class Client(Flow, Generic[Work, Row]):
    """A client with requests that wait. Its tokens are those of all of them."""

    address: Hashable
    requests: FairOrder[Request[Work, Row]]
    held: int = 0  # of the queue


@dataclass(slots=True, eq=False)
class Request(Flow, Generic[Work, Row]):
    """Several items whose caller is woken once, by the last of them. Those that wait are in `items`, oldest first."""

    done: asyncio.Future[None]
    remaining: int = 0
    request_id: str = field(default_factory=REQUEST_ID.get)
    address: str = field(default_factory=CLIENT.get)
    items: dict[QueuedItem[Work, Row], None] = field(default_factory=dict)
    client: Client[Work, Row] | None = None  # while items wait
    part: int = 0  # tokens with which it counts in the queue, at most


@dataclass(slots=True, eq=False)
class QueuedItem(Generic[Work, Row]):
    """A piece of work with its request, its deadline and, at the end, its outcome."""

    work: Work
    request: Request[Work, Row]
    deadline_s: float
    queued_at_s: float
    outcome: InferenceResult[Row] | Problem | None = None  # set in the event loop

    def is_wanted(self, now_s: float) -> bool:
        """Return whether the item has no outcome yet, is before its deadline and has a caller that still waits."""
        return self.outcome is None and now_s < self.deadline_s and not self.request.done.done()


def complete(item: QueuedItem[Work, Row], outcome: InferenceResult[Row] | Problem) -> None:
    """Set the outcome of an item that has none, and wake its caller if it was the last."""
    request = item.request
    if item.outcome is None and not request.done.done():
        item.outcome = outcome
        request.remaining -= 1
        if not request.remaining:
            request.done.set_result(None)


async def wait_until_done(done: asyncio.Future[None], remaining_s: float) -> None:
    """Wait until the future is done, for at most `remaining_s` seconds."""
    if remaining_s == math.inf:
        await done
        return
    timer = asyncio.get_running_loop().call_later(max(0.0, remaining_s), _wake, done)
    try:
        await done
    finally:
        timer.cancel()


def _wake(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


class WorkQueue(Generic[Work, Row]):
    """Items that wait, bounded in tokens and in time. Clients take turns, and so do the requests of a client.

    It has no lock: the batcher calls it under its own. `throughput` counts the tokens that enter or leave undone.
    """

    def __init__(self, limits: BatchLimits, throughput: ThroughputEstimator) -> None:
        self._limits = limits
        self._throughput = throughput
        self._part = limits.queue_tokens // _PARTS
        self._turn = max(limits.batch_tokens, limits.text_tokens)
        self._head_start = min(self._part, self._turn)
        self._clients: FairOrder[Client[Work, Row]] = FairOrder(self._head_start)
        self._by_address: dict[Hashable, Client[Work, Row]] = {}
        self._length = 0
        self._tokens = 0
        self._held = 0

    def __len__(self) -> int:
        return self._length

    def check(self, tokens: int, deadline_s: float, now_s: float, address: str) -> None:
        """Raise Overloaded if `tokens` of a client would probably be done only after the deadline."""
        if not self._throughput.is_in_time(self._throughput.pending + tokens, deadline_s - now_s):
            self._throughput.admit(tokens, deadline_s - now_s, self._tokens_ahead(tokens, address))

    def admit(self, items: Sequence[QueuedItem[Work, Row]], tokens: int, deadline_s: float, now_s: float) -> None:
        """Let the items of one request wait, which have `tokens` together.

        Raises:
            Overloaded: The queue is full, or the items would probably finish after the deadline.
        """
        request = items[0].request
        self.check(tokens, deadline_s, now_s, request.address)
        part = max(self._part, max(item.work.length for item in items))
        held = min(tokens, part)
        client = self._by_address.get(request.address or request)
        # What a client holds is never more than what is left for others. A request larger than the whole queue must be
        # possible at some time: when nothing waits.
        if self._length and held + (client.held if client else 0) > self._limits.queue_tokens - self._held:
            ahead = self._tokens_ahead(tokens, request.address)
            raise Overloaded("The queue is full.", retry_after_s=self._throughput.retry_after_s(ahead))
        self._throughput.enqueued(tokens, now_s)
        if client is None:
            client = Client(request.address or request, FairOrder(self._head_start))
            self._by_address[client.address] = client
            self._clients.add(client)
        request.client, request.part, request.tokens = client, part, tokens
        request.items = dict.fromkeys(items)
        client.requests.add(request)
        client.tokens += tokens
        client.held += held
        self._tokens += tokens
        self._held += held
        self._length += len(items)

    def _tokens_ahead(self, tokens: int, address: str) -> int:
        """Return about how many tokens are done before the `tokens` of a new request, in fair turns."""
        running = self._throughput.pending - self._tokens
        client = self._by_address.get(address) if address else None
        own = client.tokens if client else 0
        ahead = client.requests.tokens_ahead(own, max(tokens, self._turn)) if client else 0
        share = max(tokens + ahead, self._turn)
        return running + ahead + self._clients.tokens_ahead(self._tokens - own, share, client)

    def choose_batch(self, now_s: float) -> tuple[list[QueuedItem[Work, Row]], set[QueuedItem[Work, Row]]]:
        """Return the items to run next, and the items dropped because no caller wants them or they would be late.

        The dropped items have left the queue. The batch stays in it until `remove` is called.
        """
        window = self._window()
        wanted = [item for item in window if item.is_wanted(now_s)]
        dropped = set(window).difference(wanted) if len(wanted) < len(window) else set()
        batch: list[QueuedItem[Work, Row]] = []
        while wanted:
            batch = [wanted[index] for index in next_batch([item.work.length for item in wanted], self._limits)]
            end_s = now_s + self._throughput.seconds(count_tokens(batch))
            late = {item for item in batch if item.deadline_s < end_s}
            if not late:
                break
            if len(late) == len(wanted):  # trying harms no caller, and nothing else would correct a wrong rate
                batch = wanted[:1]
                break
            dropped |= late
            wanted = [item for item in wanted if item not in late]
        for item in dropped:
            self.drop(item)
        return batch, dropped

    def remove(self, batch: Sequence[QueuedItem[Work, Row]]) -> None:
        """Take the items of a batch out of the queue; their tokens stay pending until they are finished."""
        for item in batch:
            self._leave(item, has_turn=True)

    def drop(self, item: QueuedItem[Work, Row]) -> None:
        """Take an item out of the queue undone, unless it has left already."""
        if item in item.request.items:
            self._leave(item, has_turn=False)
            self._throughput.dropped(item.work.length)

    def clear(self) -> list[QueuedItem[Work, Row]]:
        """Empty the queue and return what was in it."""
        items = self._all_items()
        for item in items:
            self._leave(item, has_turn=False)
        return items

    def _all_items(self) -> list[QueuedItem[Work, Row]]:
        return [item for client in self._clients for request in client.requests for item in request.items]

    def _window(self) -> list[QueuedItem[Work, Row]]:
        """Return the items that a batch is chosen from, those with the next turns first.

        Each client has an equal room in it, and so has each request of a client.
        """
        fewest, room = self._limits.batch_items, max(_WINDOW, self._limits.batch_items)
        if self._length <= room:
            return self._all_items()
        window: list[QueuedItem[Work, Row]] = []
        of_client = max(fewest, room // len(self._clients))
        for client in self._clients:
            of_request = max(fewest, of_client // len(client.requests))
            items = chain.from_iterable([islice(request.items, of_request) for request in client.requests.first(room)])
            window += islice(items, of_client)
            if len(window) >= room:
                break
        return window

    def _leave(self, item: QueuedItem[Work, Row], has_turn: bool) -> None:
        request, client, length = item.request, item.request.client, item.work.length
        assert client is not None
        del request.items[item]
        released = min(request.tokens, request.part)
        request.tokens -= length
        released -= min(request.tokens, request.part)
        client.tokens -= length
        client.held -= released
        self._tokens -= length
        self._held -= released
        self._length -= 1
        _leave_order(client.requests, request, length, not request.items, has_turn)
        _leave_order(self._clients, client, length, not client.requests, has_turn)
        if not client.requests:
            del self._by_address[client.address]


def _leave_order(order: FairOrder[FlowType], flow: FlowType, tokens: int, is_last: bool, has_turn: bool) -> None:
    if has_turn:
        order.charge(flow, tokens, is_last)
    elif is_last:
        order.remove(flow)


def count_tokens(items: Sequence[QueuedItem[Work, Row]]) -> int:
    """Return the tokens of all items, without padding."""
    return sum(item.work.length for item in items)
