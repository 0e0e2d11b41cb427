"""The scoring of `models.ranking.recommender` in plain numpy, as in its formulas: the limit of the service.

A test compares it with the served recommender.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf, expit

from models.ranking.events import History, age_bucket, position_bucket
from models.ranking.recommender import MAX_RERANKED

Array = NDArray[np.float32]


class Plain:
    """A recommender for histories without dislikes, whose neighbours do not decay."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._weights = weights
        self._layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        self._heads, self._eyes = len(weights["reader.bias"]), len(weights["eyes"])

    def rank(
        self,
        history: History,
        vectors: Array,
        items: NDArray[np.int64],
        top_k: int,
        training_indices: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], Array, Array]:
        """Return order (k,), scores (k,) and attention weights (k, events), as `Recommender.rank` does."""
        user_vector, states = self._encode(history)
        scores = vectors @ user_vector
        if training_indices is not None and history.training_indices is not None:
            neighbour_scores = np.zeros(len(self._weights["nearness"]) + 1, np.float32)
            for row in set(history.training_indices.tolist()) - {-1}:
                neighbour_scores[self._weights["neighbours"][row]] += self._weights["nearness"][row]
            neighbour_scores[history.training_indices] = 0
            scores += neighbour_scores[training_indices]
        chosen = np.arange(len(scores))
        if len(scores) > (limit := max(MAX_RERANKED, 4 * top_k)):
            chosen = np.union1d(np.argpartition(-scores, limit)[:limit], np.flatnonzero(np.isin(items, history.items)))
        gains, weights = self._attend(states, history, vectors[chosen], items[chosen])
        totals = scores[chosen] + gains
        best = np.argsort(-totals, kind="stable")[:top_k]
        slope, offset = self._weights["calibration"]
        return chosen[best], expit(slope * totals[best] + offset), weights[best]

    def _encode(self, history: History) -> tuple[Array, Array]:
        w, events = self._weights, len(history)
        assert isinstance(history.vectors, np.ndarray)
        states = self._linear("enter", history.vectors) + w["kinds.weight"][history.kinds]
        states = states + w["ages.weight"][age_bucket(history.ages)] + w["places.weight"][position_bucket(events)]
        for layer in range(self._layers):
            states = self._block(f"blocks.{layer}", states)
        states = self._norm("norm", states)
        weights = _softmax(self._linear("reader", states).T)
        pooled = np.einsum("he,ehd->hd", weights, states.reshape(events, self._heads, -1)).ravel()
        return self._linear("taste", pooled), states

    def _block(self, name: str, states: Array) -> Array:
        normed = self._norm(f"{name}.attention_norm", states)
        query, key, value = (
            self._linear(f"{name}.attention.{projection}", normed)
            .reshape(len(states), self._heads, -1)
            .transpose(1, 0, 2)
            for projection in ("query", "key", "value")
        )
        mixed = _softmax(query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(query.shape[-1]))) @ value
        states = states + self._linear(f"{name}.attention.output", mixed.transpose(1, 0, 2).reshape(len(states), -1))
        inner = self._linear(f"{name}.inner", self._norm(f"{name}.inner_norm", states))
        inner = inner * np.float32(0.5) * (1 + erf(inner * np.float32(1 / np.sqrt(2))))
        return states + self._linear(f"{name}.output", inner)

    def _attend(
        self, states: Array, history: History, candidates: Array, items: NDArray[np.int64]
    ) -> tuple[Array, Array]:
        w = self._weights
        queries = self._linear("look", candidates).reshape(len(candidates), self._eyes, -1).transpose(1, 0, 2)
        keys = self._linear("shown", states).reshape(len(history), self._eyes, -1).transpose(1, 2, 0)
        energies = (
            queries @ keys / np.float32(np.sqrt(queries.shape[-1])) + self._linear("strength", states).T[:, None, :]
        )
        same = items[:, None] == history.items[None, :]
        at_candidate, at_event = np.nonzero(same)
        energies[:, at_candidate, at_event] += w["again"][age_bucket(history.ages)].T[:, at_event]
        peak = np.maximum(energies.max(axis=-1, keepdims=True), 0)
        terms = np.exp(energies - peak)
        total = terms.sum(axis=-1, keepdims=True) + np.exp(-peak)
        gains = w["eyes"] @ (np.log(total) + peak)[..., 0] + w["often"][0] * np.log1p(same.sum(axis=1))
        return gains, np.einsum("h,hct->ct", w["eyes"] / np.abs(w["eyes"]).sum(), terms / total)

    def _linear(self, name: str, states: Array) -> Array:
        result: Array = states @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]
        return result

    def _norm(self, name: str, states: Array) -> Array:
        centred = states - states.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(1e-5))
        result: Array = centred / spread * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return result


def _softmax(scores: Array) -> Array:
    terms = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: Array = terms / terms.sum(axis=-1, keepdims=True)
    return result
