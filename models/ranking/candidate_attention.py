"""Candidates' own attention to the events of a history: what it adds to each one's score, and each event's part in it.

Knows arrays and the bundle's weights; histories are read by `models.ranking.history_encoder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.catalogue.projections import ProjectionView
from models.ranking.events import History, age_bucket
from models.ranking.history_encoder import HistoryEncoder

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class AttendedHistory:
    """What attention to `events` (n,), places in the history, adds for each candidate (candidates,).

    `raised` (eyes, n, candidates) over `total` (eyes, candidates) is the attention of each eye, and `shares` (eyes,)
    what it counts for; they are negative where events are disliked.
    """

    events: NDArray[np.int64]
    added: Array
    raised: Array
    total: Array
    shares: Array

    def weights(self, candidates: NDArray[np.int64]) -> Array:
        """Each event's part (candidates, n)."""
        attention = self.raised[:, :, candidates] / self.total[:, None, candidates]
        found: Array = np.einsum("h,htc->ct", self.shares, attention)
        return found


class CandidateAttention:
    """By a bundle's `weights`, with the `reading` made of them."""

    def __init__(self, weights: Mapping[str, Array], reading: HistoryEncoder) -> None:
        self._reading = reading
        self._eyes, self._again, self._often = weights["eyes"], weights["again"], weights["often"]

    def attend(
        self,
        shown: Array,
        history: History,
        liked: NDArray[np.bool_],
        candidates: Array | ProjectionView,
        numbers: NDArray[np.int64],
    ) -> list[AttendedHistory]:
        """The candidates' own attention: to the events that are no dislikes, and to those that are."""
        asked = (
            candidates.queries
            if isinstance(candidates, ProjectionView)
            else self._reading.candidate_queries(candidates)
        )
        asked = asked.reshape(len(candidates), len(self._eyes), -1).transpose(1, 2, 0)
        looks = []
        for chosen, sign in ((liked, np.float32(1)), (~liked, np.float32(-1))):
            if chosen.any():
                part = history.select(chosen)
                seen = shown if sign > 0 else self._reading.encode(part)[1]
                looks.append(self._look(seen, part, asked, numbers, sign, np.flatnonzero(chosen)))
        return looks

    def _look(
        self,
        shown: Array,
        history: History,
        asked: Array,
        numbers: NDArray[np.int64],
        sign: np.float32,
        events: NDArray[np.int64],
    ) -> AttendedHistory:
        """asked (eyes, any number, candidates). What a disliked event would have added is taken away."""
        # Candidates are last, so that sums over events run along whole rows.
        energies = shown.reshape(len(history), len(self._eyes), -1).transpose(1, 0, 2) @ asked
        same = history.items[:, None] == numbers
        same[history.items < 0] = False
        at_event, at_candidate = np.divmod(np.flatnonzero(same), len(numbers))
        energies[:, at_event, at_candidate] += self._again[age_bucket(history.ages)].T[:, at_event]
        peak = np.maximum(energies.max(axis=1), 0)
        energies -= peak[:, None]
        raised = np.exp(energies, out=energies)
        total = raised.sum(axis=1) + np.exp(-peak)
        eyes, taken = self._eyes, np.bincount(at_candidate, minlength=len(numbers)).astype(np.float32)
        added = sign * (eyes @ (np.log(total) + peak) + self._often[0] * np.log1p(taken))
        return AttendedHistory(events, added, raised, total, sign * eyes / np.abs(eyes).sum())
