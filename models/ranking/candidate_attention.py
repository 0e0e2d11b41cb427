"""Attention of each candidate to the events of a history: its contribution to scores, and each event's share.

This module knows arrays and the bundle's weights. `models.ranking.history_encoder` encodes the histories.
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
    """Attention of candidates to some events of a history.

    `events` (n,) are positions in the history. `scores` (candidates,) is what the attention adds to each candidate's
    score. `exponentials` (heads, n, candidates) divided by `totals` (heads, candidates) are the attention weights of
    each head. `head_weights` (heads,) sum to 1 in magnitude, and are negated for disliked events.
    """

    events: NDArray[np.int64]
    scores: Array
    exponentials: Array
    totals: Array
    head_weights: Array

    def event_weights(self, candidates: NDArray[np.int64]) -> Array:
        """Return each event's share (candidates, n) of the attention of these candidates."""
        attention = self.exponentials[:, :, candidates] / self.totals[:, None, candidates]
        weights: Array = np.einsum("h,htc->ct", self.head_weights, attention)
        return weights


class CandidateAttention:
    """The candidate attention of a bundle's `weights`, beside the encoder made of them."""

    def __init__(self, weights: Mapping[str, Array], encoder: HistoryEncoder) -> None:
        self._encoder = encoder
        self._heads, self._repeat_bias, self._count_weight = weights["eyes"], weights["again"], weights["often"]

    def attend(
        self,
        keys: Array,
        history: History,
        liked: NDArray[np.bool_],
        candidates: Array | ProjectionView,
        items: NDArray[np.int64],
    ) -> list[AttendedHistory]:
        """Return the attention of the candidates to the liked events and to the disliked ones, where there are any.

        `keys` (liked events, any) are those of the liked events by the encoder, and `items` (candidates,) are the
        candidates' item numbers.
        """
        queries = (
            candidates.queries
            if isinstance(candidates, ProjectionView)
            else self._encoder.candidate_queries(candidates)
        )
        queries = queries.reshape(len(candidates), len(self._heads), -1).transpose(1, 2, 0)
        attended = []
        for selected, sign in ((liked, np.float32(1)), (~liked, np.float32(-1))):
            if selected.any():
                events = history.select(selected)
                event_keys = keys if sign > 0 else self._encoder.encode(events)[1]
                attended.append(self._attend(event_keys, events, queries, items, sign, np.flatnonzero(selected)))
        return attended

    def _attend(
        self,
        keys: Array,
        history: History,
        queries: Array,
        items: NDArray[np.int64],
        sign: np.float32,
        events: NDArray[np.int64],
    ) -> AttendedHistory:
        """Return the attention of `queries` (heads, any, candidates). A `sign` of -1 subtracts it from the scores."""
        # Candidates are the last axis, so that sums over events run along whole rows.
        energies = keys.reshape(len(history), len(self._heads), -1).transpose(1, 0, 2) @ queries
        same = history.items[:, None] == items
        same[history.items < 0] = False
        at_event, at_candidate = np.divmod(np.flatnonzero(same), len(items))
        energies[:, at_event, at_candidate] += self._repeat_bias[age_bucket(history.ages)].T[:, at_event]
        peak = np.maximum(energies.max(axis=1), 0)
        energies -= peak[:, None]
        exponentials = np.exp(energies, out=energies)
        totals = exponentials.sum(axis=1) + np.exp(-peak)
        heads, repeats = self._heads, np.bincount(at_candidate, minlength=len(items)).astype(np.float32)
        scores = sign * (heads @ (np.log(totals) + peak) + self._count_weight[0] * np.log1p(repeats))
        return AttendedHistory(events, scores, exponentials, totals, sign * heads / np.abs(heads).sum())
