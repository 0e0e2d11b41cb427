"""The pace of the explanation thread: pauses while plain requests are served, and cancellation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from service.errors import DeadlineExceeded, Problem
from service.explanation.request import AnyExplanation, ExplanationCancelled

_PAUSE_PER_WORK = 9.0  # seconds per second of work, while plain requests are served
_MAX_PAUSE_S = 1.0

Result = TypeVar("Result")


class Job(Generic[AnyExplanation]):
    """The state of a request that the event loop and the thread share: its outcomes so far, and its cancellation."""

    def __init__(self, items: int, deadline_s: float) -> None:
        self.items, self.deadline_s = items, deadline_s
        self.outcomes: list[AnyExplanation | Problem] = []
        self.problem: Problem | None = None  # of the whole request
        self.cancelled = threading.Event()

    @property
    def is_over(self) -> bool:
        """Return whether the request is cancelled or past its deadline."""
        return self.cancelled.is_set() or time.monotonic() >= self.deadline_s

    def all_outcomes(self) -> tuple[AnyExplanation | Problem, ...]:
        """Return one outcome per item, with DeadlineExceeded for each item that was not reached."""
        done = tuple(self.outcomes)
        late = DeadlineExceeded("The item was not explained before the deadline.")
        return done + (late,) * (self.items - len(done))


class Pacer:
    """The pace of the thread. It pauses while plain requests are served, and stops when its caller no longer waits."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self.job: Job[Any] | None = None

    def step(self, work: Callable[[], Result]) -> Result:
        """Do one short step of work, pause if plain requests are served, and return the result.

        Outside the explanation thread there is no job, so there is no pause.

        Raises:
            ExplanationCancelled: The request is cancelled or past its deadline.
        """
        if self.job is None:
            return work()
        if self.job.is_over:
            raise ExplanationCancelled
        started_s = time.monotonic()
        result = work()
        if self._busy():
            pause_s = min(_MAX_PAUSE_S, _PAUSE_PER_WORK * (time.monotonic() - started_s))
            self.job.cancelled.wait(min(pause_s, remaining_s(self.job.deadline_s)))
        return result


def remaining_s(deadline_s: float) -> float:
    """Return the seconds until the deadline on the monotonic clock, at least 0."""
    return max(0.0, deadline_s - time.monotonic())
