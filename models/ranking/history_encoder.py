"""Encoding of a user's history without torch: the user vector, and each event's keys for candidate attention.

The arithmetic is that of `models.networks.recommender`, in NumPy, for one history at a time. The constructor folds as
much as possible into the weights. Everything added to the events' states has mean 0 over each state, so layer norms
only divide. The weights of layer norms are folded into the products that follow.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.catalogue.projections import ProjectionView
from models.ranking.events import History, age_bucket, position_bucket
from models.ranking.numpy_layers import gelu, normalize_centered_rows, softmax_terms

Array = NDArray[np.float32]
Wide = NDArray[np.float64]


class HistoryEncoder:
    """The history encoder of a bundle's `weights`."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        self._heads = len(weights["reader.bias"])
        self._empty_user_vector = weights["taste.bias"]
        wide = {name: value.astype(np.float64) for name, value in weights.items()}
        self._embeddings = {name: _to_float32(_center(wide[f"{name}.weight"])) for name in ("kinds", "ages", "places")}
        linears = {"enter": _centered_linear(wide, "enter")}
        for name in (f"blocks.{layer}" for layer in range(self._layers)):
            query, key, value = (_linear(wide, f"{name}.attention.{role}") for role in ("query", "key", "value"))
            root = np.sqrt(query[0].shape[1] // self._heads)
            combined = _concatenate((query[0] / root, query[1] / root), key, value)
            linears[f"{name}.attention"] = _fold_norm(wide, f"{name}.attention_norm", combined)
            linears[f"{name}.attention.output"] = _centered_linear(wide, f"{name}.attention.output")
            linears[f"{name}.inner"] = _fold_norm(wide, f"{name}.inner_norm", _linear(wide, f"{name}.inner"))
            linears[f"{name}.output"] = _centered_linear(wide, f"{name}.output")
        # The pooling weights sum to 1, so the norm before the pooling can be folded into the product after it.
        for name in ("reader", "taste"):
            linears[name] = _fold_norm(wide, "norm", _linear(wide, name))
        self._candidate_heads = len(weights["eyes"])
        keys, strength = _linear(wide, "shown"), _linear(wide, "strength")
        root = np.sqrt(keys[0].shape[1] // self._candidate_heads)
        linears["shown"] = _fold_norm(wide, "norm", self._interleave((keys[0] / root, keys[1] / root), strength))
        queries = _linear(wide, "look")
        ones = np.zeros((len(queries[0]), self._candidate_heads)), np.ones(self._candidate_heads)
        linears["look"] = self._interleave(queries, ones)
        self._linears = {name: tuple(map(_to_float32, linear)) for name, linear in linears.items()}

    def history_inputs(self, vectors: Array) -> Array:
        """Project item vectors (items, width) to what they add to the states of a history."""
        return self._apply("enter", vectors)

    def candidate_queries(self, vectors: Array) -> Array:
        """Project item vectors (items, width) to the queries of candidate attention, each head's followed by a one."""
        return self._apply("look", vectors)

    def encode(self, history: History) -> tuple[Array, Array]:
        """Return the user vector (width,) and the events' keys (events, any) for candidate attention.

        For each head, the product of an event's key and a candidate's query is the candidate's attention energy.
        """
        if not len(history):
            return self._empty_user_vector, np.empty((0, self._linears["shown"][0].shape[1]), np.float32)
        vectors = history.vectors
        states = vectors.inputs if isinstance(vectors, ProjectionView) else self.history_inputs(vectors)
        states = states + self._embeddings["kinds"].take(history.kinds, axis=0)
        states += self._embeddings["ages"].take(age_bucket(history.ages), axis=0)
        states += self._embeddings["places"].take(position_bucket(len(history)), axis=0)
        for layer in range(self._layers):
            self._apply_block(f"blocks.{layer}", states)
        states = normalize_centered_rows(states)
        weights, total = softmax_terms(self._apply("reader", states))
        pooled = np.einsum("eh,ehd->hd", weights, states.reshape(len(history), self._heads, -1)) / total[:, None]
        return self._apply("taste", pooled.ravel()), self._apply("shown", states)

    def _apply_block(self, name: str, states: Array) -> None:
        """Update the states in place."""
        projected = self._apply(f"{name}.attention", normalize_centered_rows(states))
        query, key, value = projected.reshape(len(states), 3, self._heads, -1).transpose(1, 2, 0, 3)
        weights, total = softmax_terms(key @ query.transpose(0, 2, 1))
        mixed = value.transpose(0, 2, 1) @ weights
        mixed /= total[:, None]
        states += self._apply(f"{name}.attention.output", mixed.reshape(-1, len(states)).T)
        states += self._apply(f"{name}.output", gelu(self._apply(f"{name}.inner", normalize_centered_rows(states))))

    def _interleave(self, linear: tuple[Wide, Wide], scalar: tuple[Wide, Wide]) -> tuple[Wide, Wide]:
        """Combine two linears so that each candidate head's output of the first is followed by that of the second."""
        split = (np.split(values, self._candidate_heads, axis=-1) for values in (*linear, *scalar))
        pairs = (((matrix, bias), (column, offset)) for matrix, bias, column, offset in zip(*split, strict=True))
        return _concatenate(*(linear for pair in pairs for linear in pair))

    def _apply(self, name: str, states: Array) -> Array:
        matrix, bias = self._linears[name]
        result: Array = states @ matrix
        result += bias
        return result


def _linear(weights: Mapping[str, Wide], name: str) -> tuple[Wide, Wide]:
    """Return the matrix that multiplies from the right, and the bias."""
    return weights[f"{name}.weight"].T, weights[f"{name}.bias"]


def _centered_linear(weights: Mapping[str, Wide], name: str) -> tuple[Wide, Wide]:
    matrix, bias = _linear(weights, name)
    return _center(matrix), _center(bias)


def _concatenate(*linears: tuple[Wide, Wide]) -> tuple[Wide, Wide]:
    matrices, biases = zip(*linears, strict=True)
    return np.concatenate(matrices, axis=1), np.concatenate(biases)


def _fold_norm(weights: Mapping[str, Wide], norm: str, linear: tuple[Wide, Wide]) -> tuple[Wide, Wide]:
    """Fold the weights of the preceding layer norm into a linear."""
    matrix, bias = linear
    return weights[f"{norm}.weight"][:, None] * matrix, bias + weights[f"{norm}.bias"] @ matrix


def _center(values: Wide) -> Wide:
    centered: Wide = values - values.mean(axis=-1, keepdims=True)
    return centered


def _to_float32(values: Wide) -> Array:
    return np.ascontiguousarray(values, np.float32)
