"""Admission: an estimate of throughput that tells whether a request can still be answered in time.

Every queue uses it. The batcher counts what its thread completes, a gateway what its calls return. Callers pass the
current time in, and a token is whatever unit the owner counts in. It does not know threads or HTTP.
"""

from __future__ import annotations

from service.errors import Overloaded

_MEMORY_S = 1.0  # seconds of work that the measured rate covers
_MAX_WEIGHT = 0.2  # of a single measurement in the rate: a stall says little about the time after it
_USABLE_SHARE = 0.7  # of the remaining time that may be promised: near lengths overtake, so some items wait longer
_RETURN_S = 0.05
_RETURN_SHARE = 0.1
_MAX_RETRY_S = 60.0


def work_budget_s(remaining_s: float) -> float:
    """Return the part of a caller's remaining time that is left for work before the answer crosses one hop."""
    return remaining_s - min(_RETURN_S, remaining_s * _RETURN_SHARE)


class ThroughputEstimator:
    """Tokens completed per second of work; gaps between batches count, idle time does not.

    The rate is an average over time, so short and long measurements count in proportion to their length. A
    measurement that leaves nothing pending is only a lower bound, since a batch of one says little about full
    batches. It can raise the rate but not lower it.
    """

    def __init__(self) -> None:
        self.pending = 0  # tokens that wait or run
        self._rate = 0.0
        self._weight = 0.0  # of all measurements so far; it approaches 1
        self._since_s = 0.0

    def enqueued(self, tokens: int, now_s: float) -> None:
        """Count tokens that begin to wait."""
        if self.pending == 0:
            self._since_s = now_s
        self.pending += tokens

    def dropped(self, tokens: int) -> None:
        """Count tokens that leave without being completed."""
        self.pending -= tokens

    def completed(self, tokens: int, now_s: float) -> None:
        """Count completed tokens and update the rate."""
        self.pending -= tokens
        seconds = max(now_s - self._since_s, 1e-6)
        self._since_s = now_s
        measured = tokens / seconds
        if self.pending == 0 and measured < self._rate:
            return
        weight = min(_MAX_WEIGHT, seconds / _MEMORY_S)
        self._weight += (1 - self._weight) * weight
        self._rate += (measured - self._rate) * weight / self._weight

    def seconds(self, tokens: int) -> float:
        """Return the seconds that the tokens will take, or 0 before the first measurement."""
        return tokens / self._rate if self._rate else 0.0

    @property
    def retry_s(self) -> float:
        """Seconds until the pending tokens are done, for Retry-After."""
        return self.retry_after_s(self.pending)

    def retry_after_s(self, ahead: int) -> float:
        """Return the seconds until the tokens ahead of a request are done, for Retry-After."""
        return min(_MAX_RETRY_S, self.seconds(ahead) or 1.0)

    def is_in_time(self, tokens: int, remaining_s: float) -> bool:
        """Return whether `tokens` that begin now would be completed in time, and not only just.

        It is true while nothing is pending, so that a rate measured at a bad moment cannot refuse everything.
        """
        return not self.pending or not 0 < remaining_s * _USABLE_SHARE < self.seconds(tokens)

    def admit(self, tokens: int, remaining_s: float, ahead: int | None = None) -> None:
        """Raise Overloaded if more tokens would be completed too late, or only just in time.

        Those `ahead` of them are all that are pending, unless a queue in fair turns knows better.
        """
        ahead = self.pending if ahead is None else ahead
        if not self.is_in_time(ahead + tokens, remaining_s):
            raise Overloaded(
                "The queue needs more time than this request can wait.",
                retry_after_s=self.retry_after_s(ahead),
            )
