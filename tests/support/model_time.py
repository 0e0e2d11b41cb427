"""A queue whose model takes time on a clock of its own, for tests of what waits for how long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.inference.admission import ThroughputEstimator
from service.inference.batch_policy import BatchLimits, InferenceResult
from service.inference.queue import QueuedItem, Request, WorkQueue, complete

LIMITS = BatchLimits(batch_tokens=160, batch_items=8, queue_tokens=65_536, text_tokens=512)
TOKEN_S, BATCH_S = 1 / 8000, 0.001
Item = QueuedItem[Any, Any]


@dataclass(frozen=True, slots=True)
class Work:
    """A piece of work of a length."""

    length: int


class Done:
    """A future without an event loop."""

    def __init__(self) -> None:
        self._is_done = False

    def done(self) -> bool:
        return self._is_done

    def set_result(self, _: None) -> None:
        self._is_done = True


@dataclass(eq=False)
class Post:
    """A request that waits or has ended: its items, and when each was answered."""

    items: list[Item]
    sent_s: float
    answered_s: dict[Item, float] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        return len(self.answered_s) == len(self.items)

    @property
    def seconds(self) -> float:
        """The time from the request to its last answer."""
        return max(self.answered_s.values()) - self.sent_s


class ModelTime:
    """A queue and a model that runs one batch at a time. `now_s` moves only while a batch runs."""

    def __init__(self, limits: BatchLimits = LIMITS) -> None:
        self.limits = limits
        self.throughput = ThroughputEstimator()
        self.queue: WorkQueue[Work, None] = WorkQueue(limits, self.throughput)
        self.now_s = 0.0
        self.batches: list[list[Item]] = []
        self.expired: list[Item] = []
        self._posts: dict[Request[Any, Any], Post] = {}

    def measure(self) -> None:
        """Let the queue learn the rate of its model."""
        self.post("", [400] * 5)
        self.run()
        self.batches.clear()

    def post(self, address: str, lengths: Sequence[int], deadline_s: float = float("inf")) -> Post:
        """Send a request; raise Overloaded if it is refused."""
        request: Request[Work, None] = Request(Done(), len(lengths), address=address)  # type: ignore[arg-type]
        items = [QueuedItem(Work(length), request, deadline_s, self.now_s) for length in lengths]
        self.queue.admit(items, sum(lengths), deadline_s, self.now_s)
        post = self._posts[request] = Post(items, self.now_s)
        return post

    def withdraw(self, post: Post) -> None:
        """Let the caller of a request go away."""
        for item in post.items:
            self.queue.drop(item)

    def step(self, arrive: Callable[[float], None] | None = None) -> bool:
        """Run one batch, and return whether there was one. `arrive` is called while it runs, with its end."""
        batch, dropped = self.queue.choose_batch(self.now_s)
        self.expired += dropped
        if not batch:
            return False
        self.queue.remove(batch)
        self.batches.append(batch)
        end_s = self.now_s + BATCH_S + max(item.work.length for item in batch) * len(batch) * TOKEN_S
        if arrive is not None:
            arrive(end_s)
        self.now_s = end_s
        self.throughput.completed(sum(item.work.length for item in batch), self.now_s)
        for item in batch:
            self._posts[item.request].answered_s[item] = self.now_s
            complete(item, InferenceResult(None, 0.0, 0.0))
        return True

    def run(self, arrive: Callable[[float], None] | None = None, until_s: float = float("inf")) -> None:
        """Run batches until nothing waits, or until a time."""
        while self.now_s < until_s and self.step(arrive):
            pass
