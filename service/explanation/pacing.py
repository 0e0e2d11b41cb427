"""Pauses while plain requests are served, and cancellation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from service.errors import DeadlineExceeded, Problem
from service.explanation.request import AnyExplanation, ExplanationCancelled

_PAUSES = 9.0  # for each second of work while plain texts are being answered
_LONGEST_PAUSE_S = 1.0

Result = TypeVar("Result")


class Job(Generic[AnyExplanation]):
    """What event loop and thread share of one request: outcomes as they come, and whether they are still wanted."""

    def __init__(self, items: int, deadline_s: float) -> None:
        self.items, self.deadline_s = items, deadline_s
        self.outcomes: list[AnyExplanation | Problem] = []
        self.refused: Problem | None = None
        self.given_up = threading.Event()

    @property
    def over(self) -> bool:
        return self.given_up.is_set() or time.monotonic() >= self.deadline_s

    def answered(self) -> tuple[AnyExplanation | Problem, ...]:
        """With a problem for each item that was not reached."""
        done = tuple(self.outcomes)
        late = DeadlineExceeded("It was not explained in time.")
        return done + (late,) * (self.items - len(done))


class Pacer:
    """Of the thread: it pauses while others are being answered, and stops when nobody waits for it."""

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self.job: Job[Any] | None = None

    def step(self, work: Callable[[], Result]) -> Result:
        """The work of a moment; raises GivenUp. Outside the thread there is no job, and nobody to give way to."""
        if self.job is None:
            return work()
        if self.job.over:
            raise ExplanationCancelled
        started_s = time.monotonic()
        result = work()
        if self._busy():
            pause_s = min(_LONGEST_PAUSE_S, _PAUSES * (time.monotonic() - started_s))
            self.job.given_up.wait(min(pause_s, remaining_s(self.job.deadline_s)))
        return result


def remaining_s(deadline_s: float) -> float:
    return max(0.0, deadline_s - time.monotonic())
