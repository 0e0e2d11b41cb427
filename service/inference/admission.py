"""Whether a request can still be answered in time: how fast work gets done, and what the answer's way back takes.

One notion for all that queue: the batcher counts what its thread finishes, a gateway what its calls bring back. It is
told the time and never asks for it. Tokens are whatever its owner counts in. Knows nothing of threads or of HTTP.
"""

from __future__ import annotations

from service.errors import Overloaded

_MEMORY_S = 1.0  # of work that the measured rate looks back on
_MOST = 0.2  # of the rate that one measurement can make up: a stall says little about what comes after it
_SHARE = 0.7  # of the time left that may be promised: near lengths overtake, so some wait longer than the mean
_WAY_BACK_S = 0.05
_WAY_BACK_SHARE = 0.1
_LONGEST_RETRY_S = 60.0


def work_budget_s(left_s: float) -> float:
    """Of the time a caller has, what is left for work when its answer has one hop to cross afterwards."""
    return left_s - min(_WAY_BACK_S, left_s * _WAY_BACK_SHARE)


class ThroughputEstimator:
    """Tokens finished per second in which there was work, gaps between batches included, idle time not.

    An average over time, so that short and long measurements weigh what they are worth. Work that ends with nothing
    left to do shows only what is possible at least: a batch of one says little of full ones, so it can raise the rate
    and not lower it.
    """

    def __init__(self) -> None:
        self.pending = 0  # tokens that wait or are being worked on
        self._rate = 0.0
        self._weight = 0.0  # of all measurements so far; near 1 after a while
        self._since_s = 0.0

    def enqueued(self, tokens: int, now_s: float) -> None:
        if self.pending == 0:
            self._since_s = now_s
        self.pending += tokens

    def dropped(self, tokens: int) -> None:
        """Without being finished."""
        self.pending -= tokens

    def completed(self, tokens: int, now_s: float) -> None:
        self.pending -= tokens
        seconds = max(now_s - self._since_s, 1e-6)
        self._since_s = now_s
        measured = tokens / seconds
        if self.pending == 0 and measured < self._rate:
            return
        weight = min(_MOST, seconds / _MEMORY_S)
        self._weight += (1 - self._weight) * weight
        self._rate += (measured - self._rate) * weight / self._weight

    def seconds(self, tokens: int) -> float:
        """That so many tokens take; 0 before anything was measured."""
        return tokens / self._rate if self._rate else 0.0

    @property
    def retry_s(self) -> float:
        return min(_LONGEST_RETRY_S, self.seconds(self.pending) or 1.0)

    def admit(self, tokens: int, left_s: float) -> None:
        """Raises Overloaded when so many tokens more would be finished too late, or nearly.

        Never while nothing is ahead: a rate that was measured at a bad time must not keep everybody out.
        """
        if self.pending and 0 < left_s * _SHARE < self.seconds(self.pending + tokens):
            raise Overloaded("What waits already takes longer than this request can wait.", retry_after_s=self.retry_s)
