"""The scoring of `models.recommender`, written down in numpy as the formulas say it: the limit that serving is held to.

A test holds it to what serves. Knows a bundle's weights, a history and candidates.
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
    """For histories without dislikes, and neighbours that do not fade."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._w = weights
        self._layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        self._heads, self._eyes = len(weights["reader.bias"]), len(weights["eyes"])

    def rank(
        self,
        history: History,
        vectors: Array,
        numbers: NDArray[np.int64],
        top_k: int,
        trained: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], Array, Array]:
        """As `Recommender.rank`: order (k,), scores (k,) and weights (k, events), these of attention alone."""
        taste, states = self._read(history)
        scores = vectors @ taste
        if trained is not None and history.training_indices is not None:
            said = np.zeros(len(self._w["nearness"]) + 1, np.float32)
            for row in set(history.training_indices.tolist()) - {-1}:
                said[self._w["neighbours"][row]] += self._w["nearness"][row]
            said[history.training_indices] = 0
            scores += said[trained]
        chosen = np.arange(len(scores))
        if len(scores) > (wanted := max(MAX_RERANKED, 4 * top_k)):
            chosen = np.union1d(
                np.argpartition(-scores, wanted)[:wanted], np.flatnonzero(np.isin(numbers, history.items))
            )
        added, weights = self._attended(states, history, vectors[chosen], numbers[chosen])
        found = scores[chosen] + added
        best = np.argsort(-found, kind="stable")[:top_k]
        slope, offset = self._w["calibration"]
        return chosen[best], expit(slope * found[best] + offset), weights[best]

    def _read(self, history: History) -> tuple[Array, Array]:
        w, events = self._w, len(history)
        assert isinstance(history.vectors, np.ndarray)
        states = self._linear("enter", history.vectors) + w["kinds.weight"][history.kinds]
        states = states + w["ages.weight"][age_bucket(history.ages)] + w["places.weight"][position_bucket(events)]
        for number in range(self._layers):
            states = self._block(f"blocks.{number}", states)
        states = self._norm("norm", states)
        weights = _softmax(self._linear("reader", states).T)
        pooled = np.einsum("he,ehd->hd", weights, states.reshape(events, self._heads, -1)).ravel()
        return self._linear("taste", pooled), states

    def _block(self, name: str, states: Array) -> Array:
        normed = self._norm(f"{name}.attention_norm", states)
        query, key, value = (
            self._linear(f"{name}.attention.{part}", normed).reshape(len(states), self._heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        mixed = _softmax(query @ key.transpose(0, 2, 1) / np.float32(np.sqrt(query.shape[-1]))) @ value
        states = states + self._linear(f"{name}.attention.output", mixed.transpose(1, 0, 2).reshape(len(states), -1))
        inner = self._linear(f"{name}.inner", self._norm(f"{name}.inner_norm", states))
        inner = inner * np.float32(0.5) * (1 + erf(inner * np.float32(1 / np.sqrt(2))))
        return states + self._linear(f"{name}.output", inner)

    def _attended(
        self, states: Array, history: History, candidates: Array, numbers: NDArray[np.int64]
    ) -> tuple[Array, Array]:
        w = self._w
        asked = self._linear("look", candidates).reshape(len(candidates), self._eyes, -1).transpose(1, 0, 2)
        shown = self._linear("shown", states).reshape(len(history), self._eyes, -1).transpose(1, 2, 0)
        energies = asked @ shown / np.float32(np.sqrt(asked.shape[-1])) + self._linear("strength", states).T[:, None, :]
        same = numbers[:, None] == history.items[None, :]
        at_candidate, at_event = np.nonzero(same)
        energies[:, at_candidate, at_event] += w["again"][age_bucket(history.ages)].T[:, at_event]
        peak = np.maximum(energies.max(axis=-1, keepdims=True), 0)
        raised = np.exp(energies - peak)
        total = raised.sum(axis=-1, keepdims=True) + np.exp(-peak)
        added = w["eyes"] @ (np.log(total) + peak)[..., 0] + w["often"][0] * np.log1p(same.sum(axis=1))
        return added, np.einsum("h,hct->ct", w["eyes"] / np.abs(w["eyes"]).sum(), raised / total)

    def _linear(self, name: str, states: Array) -> Array:
        found: Array = states @ self._w[f"{name}.weight"].T + self._w[f"{name}.bias"]
        return found

    def _norm(self, name: str, states: Array) -> Array:
        centred = states - states.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(1e-5))
        found: Array = centred / spread * self._w[f"{name}.weight"] + self._w[f"{name}.bias"]
        return found


def _softmax(scores: Array) -> Array:
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    found: Array = raised / raised.sum(axis=-1, keepdims=True)
    return found
