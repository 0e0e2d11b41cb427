"""A user's history read without torch: its taste, and what each event shows to candidates' own attention.

The arithmetic of `models.networks.recommender`, in numpy, for one history at a time. What weights can take in
beforehand they
do: all that is added to the events' states has mean 0 over each state from the start, so that layer norms have only to
divide, and their own weights are in the products after them.
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
    """By a bundle's `weights`."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        self._heads = len(weights["reader.bias"])
        self._nothing = weights["taste.bias"]
        wide = {name: value.astype(np.float64) for name, value in weights.items()}
        self._given = {name: _narrow(_centred(wide[f"{name}.weight"])) for name in ("kinds", "ages", "places")}
        found = {"enter": _centred_linear(wide, "enter")}
        for name in (f"blocks.{number}" for number in range(self._layers)):
            query, key, value = (_linear(wide, f"{name}.attention.{part}") for part in ("query", "key", "value"))
            root = np.sqrt(query[0].shape[1] // self._heads)
            joined = _joined((query[0] / root, query[1] / root), key, value)
            found[f"{name}.attention"] = _after(wide, f"{name}.attention_norm", joined)
            found[f"{name}.attention.output"] = _centred_linear(wide, f"{name}.attention.output")
            found[f"{name}.inner"] = _after(wide, f"{name}.inner_norm", _linear(wide, f"{name}.inner"))
            found[f"{name}.output"] = _centred_linear(wide, f"{name}.output")
        for name in ("reader", "taste"):  # a mean of states, by shares of 1 in all, is as they are
            found[name] = _after(wide, "norm", _linear(wide, name))
        self._eyes = len(weights["eyes"])
        shown, strength = _linear(wide, "shown"), _linear(wide, "strength")
        root = np.sqrt(shown[0].shape[1] // self._eyes)
        found["shown"] = _after(wide, "norm", self._each((shown[0] / root, shown[1] / root), strength))
        look = _linear(wide, "look")
        found["look"] = self._each(look, (np.zeros((len(look[0]), self._eyes)), np.ones(self._eyes)))
        self._linears = {name: tuple(map(_narrow, pair)) for name, pair in found.items()}

    def inputs_of(self, vectors: Array) -> Array:
        """What item vectors (items, width) enter the states of a history as."""
        return self._by("enter", vectors)

    def candidate_queries(self, vectors: Array) -> Array:
        """What items with these vectors (items, width) ask of events, eye by eye, each followed by a one."""
        return self._by("look", vectors)

    def encode(self, history: History) -> tuple[Array, Array]:
        """The taste (width,), and what the events show to those who ask, (events, any number): its product with what an
        item asks, eye by eye, is how much the item attends to them."""
        if not len(history):
            return self._nothing, np.empty((0, self._linears["shown"][0].shape[1]), np.float32)
        entered = history.vectors
        states = entered.inputs if isinstance(entered, ProjectionView) else self.inputs_of(entered)
        states = states + self._given["kinds"].take(history.kinds, axis=0)
        states += self._given["ages"].take(age_bucket(history.ages), axis=0)
        states += self._given["places"].take(position_bucket(len(history)), axis=0)
        for number in range(self._layers):
            self._block(f"blocks.{number}", states)
        states = normalize_centered_rows(states)
        weights, total = softmax_terms(self._by("reader", states))
        pooled = np.einsum("eh,ehd->hd", weights, states.reshape(len(history), self._heads, -1)) / total[:, None]
        return self._by("taste", pooled.ravel()), self._by("shown", states)

    def _block(self, name: str, states: Array) -> None:
        """Changes the states."""
        joined = self._by(f"{name}.attention", normalize_centered_rows(states)).reshape(len(states), 3, self._heads, -1)
        query, key, value = joined.transpose(1, 2, 0, 3)
        weights, total = softmax_terms(key @ query.transpose(0, 2, 1))
        mixed = value.transpose(0, 2, 1) @ weights
        mixed /= total[:, None]
        states += self._by(f"{name}.attention.output", mixed.reshape(-1, len(states)).T)
        states += self._by(f"{name}.output", gelu(self._by(f"{name}.inner", normalize_centered_rows(states))))

    def _each(self, linear: tuple[Wide, Wide], more: tuple[Wide, Wide]) -> tuple[Wide, Wide]:
        """Of each eye first what `linear` gives, then the one that `more` does."""
        parts = (np.split(one, self._eyes, axis=-1) for one in (*linear, *more))
        eyes = zip(*parts, strict=True)
        return _joined(*(pair for matrix, bias, other, own in eyes for pair in ((matrix, bias), (other, own))))

    def _by(self, name: str, states: Array) -> Array:
        matrix, bias = self._linears[name]
        found: Array = states @ matrix
        found += bias
        return found


def _linear(weights: Mapping[str, Wide], name: str) -> tuple[Wide, Wide]:
    """The matrix as it multiplies from the right, and the bias."""
    return weights[f"{name}.weight"].T, weights[f"{name}.bias"]


def _centred_linear(weights: Mapping[str, Wide], name: str) -> tuple[Wide, Wide]:
    matrix, bias = _linear(weights, name)
    return _centred(matrix), _centred(bias)


def _joined(*linears: tuple[Wide, Wide]) -> tuple[Wide, Wide]:
    matrices, biases = zip(*linears, strict=True)
    return np.concatenate(matrices, axis=1), np.concatenate(biases)


def _after(weights: Mapping[str, Wide], norm: str, linear: tuple[Wide, Wide]) -> tuple[Wide, Wide]:
    """With the weights of the layer norm before it."""
    matrix, bias = linear
    return weights[f"{norm}.weight"][:, None] * matrix, bias + weights[f"{norm}.bias"] @ matrix


def _centred(values: Wide) -> Wide:
    found: Wide = values - values.mean(axis=-1, keepdims=True)
    return found


def _narrow(values: Wide) -> Array:
    return np.ascontiguousarray(values, np.float32)
