"""The ways to weigh the parts of a text: by what taking them away changes, or by where the network looks.

The first see an answer as a function of the parts that are kept, the others as maps of attention. Nothing here knows
texts, bundles or runtimes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.text.encoding import Encoding

if TYPE_CHECKING:
    from models.explain.attention_maps import AttentionMaps


PERMUTATIONS = 10
"""In which Shapley values are sampled, in pairs of one order and its reverse."""

POINTS, MAX_POINTS = 8, 512
"""Of a piece of the way from nothing to the whole, at which gradients are taken, and of all of it at most."""

ROOT = 3
NOTHING = 1e-9
"""How far parts are there where none is: nearer to 0 there is nothing to be seen."""

COMPLETENESS_TOLERANCE = 0.01
"""Share of what the whole changes that weights of gradients may miss."""

MIN_CHANGE = 1e-3
"""Below it, in points of the score, nothing changes, and that share is of it."""

Value = Callable[[NDArray[np.bool_]], NDArray[np.float64]]
"""Which parts of a text are kept, (variants, parts), to the value of each variant, (variants,)."""

Gradient = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""How far all parts are there, (points,) above 0 and at most 1, to the value at each, (points,), and its gradient by
each part, (points, parts)."""


def occlusion(value: Value, parts: int) -> NDArray[np.float64]:
    """(parts,): what the value loses without each part (Zeiler & Fergus 2014; leave one out)."""
    values = value(np.vstack([np.ones((1, parts), np.bool_), ~np.eye(parts, dtype=np.bool_)]))
    return np.asarray(values[0] - values[1:])


def two_sided_occlusion(value: Value, parts: int) -> NDArray[np.float64]:
    """(parts,): the mean of what each part changes last, in the whole text, and first, when nothing else is kept.

    These are the two ends of every order that Shapley values are the mean over. One end alone misses what a text says
    twice, since either word can go, the other what only words together say.
    """
    alone = np.eye(parts, dtype=np.bool_)
    values = value(np.vstack([np.zeros((1, parts), np.bool_), alone]))
    return np.asarray((occlusion(value, parts) + values[1:] - values[0]) / 2)


def shapley(value: Value, parts: int, orders: int) -> NDArray[np.float64]:
    """(parts,): what each part adds, in the mean over random orders in which parts come in (Castro et al. 2009).

    Every other order is the one before reversed, which makes the mean steadier (Mitchell et al. 2022). Weights sum to
    the value of the whole less that of nothing. The orders are the same every time.
    """
    chance = np.random.default_rng(0)
    drawn = [chance.permutation(parts) for _ in range(orders // 2)]
    every = [order for one in drawn for order in (one, one[::-1])]
    kept = np.zeros((len(every), parts + 1, parts), np.bool_)
    for number, order in enumerate(every):
        kept[number][:, order] = np.tri(parts + 1, parts, -1, dtype=np.bool_)
    values = value(kept.reshape(-1, parts)).reshape(len(every), parts + 1)
    added = np.zeros(parts)
    for order, along in zip(every, values, strict=True):
        added[order] += np.diff(along) / len(every)
    return added


def integrated_gradients(slope: Gradient) -> NDArray[np.float64]:
    """(parts,): the gradient by each part, in the mean over the way on which all come in together.

    The integral of Sundararajan et al. (2017, eq. 1), which for parts that come in is the price of Aumann and Shapley
    (1974): weights sum to the value of the whole less that of nothing. Pieces of the way are even in the ROOT-th root
    of how far parts are there, since most changes where little is there yet; what a piece misses is known from the
    values at its ends, and the one that misses most is halved until the weights miss no more than INCOMPLETE.
    """
    pieces = [integrate_segment(slope, 0.0, 0.5), integrate_segment(slope, 0.5, 1.0)]
    whole = abs(sum(own.change for own in pieces))
    while abs(sum(own.missed for own in pieces)) > COMPLETENESS_TOLERANCE * max(whole, MIN_CHANGE):
        if POINTS * (len(pieces) + 1) > MAX_POINTS:
            break
        worst = max(pieces, key=lambda own: abs(own.missed))
        middle = (worst.start + worst.end) / 2
        pieces.remove(worst)
        pieces += [integrate_segment(slope, worst.start, middle), integrate_segment(slope, middle, worst.end)]
    return np.asarray(sum(own.weights for own in pieces))


@dataclass(frozen=True, slots=True, eq=False)
class PathSegment:
    """Of the way: what the value changes there, and the integrals of its gradient by each part, (parts,)."""

    start: float
    end: float
    change: float
    weights: NDArray[np.float64]

    @property
    def missed(self) -> float:
        return float(self.weights.sum()) - self.change


def integrate_segment(slope: Gradient, start: float, end: float) -> PathSegment:
    """By the points of Gauss and Legendre."""
    places, shares = np.polynomial.legendre.leggauss(POINTS)
    roots = start + (end - start) * np.concatenate([[0], (places + 1) / 2, [1]])
    values, slopes = slope(np.maximum(roots**ROOT, NOTHING))
    along = shares / 2 * (end - start) * ROOT * roots[1:-1] ** (ROOT - 1)
    return PathSegment(start, end, float(values[-1] - values[0]), along @ slopes[1:-1])


def pooling_weights(tokens: Encoding) -> NDArray[np.float32]:
    """(length,): the share that the answer takes of each token's last state, as `models.networks.encoder.pool_hidden`."""
    chosen = tokens.token_types if tokens.has_entity else np.ones_like(tokens.token_types)
    return np.asarray(chosen / chosen.sum(), np.float32)


def attention_attribution(maps: AttentionMaps, readers: NDArray[np.float32]) -> NDArray[np.float32]:
    """(length,): what the answer takes from each token in the last layer, in the mean over heads. Of one text."""
    return np.asarray(readers @ maps.attention(maps.layers - 1)[0].mean(axis=0))


def value_norm(maps: AttentionMaps, readers: NDArray[np.float32]) -> NDArray[np.float32]:
    """(length,): attention times the length of what it carries (Kobayashi et al. 2020), in the mean over layers."""
    shares = []
    for layer in range(maps.layers):
        carried = (maps.attention(layer)[0] * maps.value_norms(layer)[0][:, None, :]).mean(axis=0)
        shares.append(readers @ (carried / carried.sum(axis=-1, keepdims=True)))
    return np.asarray(np.mean(shares, axis=0))


def rollout(maps: AttentionMaps, readers: NDArray[np.float32]) -> NDArray[np.float32]:
    """(length,): attention followed from the answer down to the input (Abnar & Zuidema 2020).

    In every layer half of a token comes from itself, past the attention.
    """
    shares: NDArray[np.float32] = readers
    for layer in reversed(range(maps.layers)):
        shares = np.asarray((shares + shares @ maps.attention(layer)[0].mean(axis=0)) / 2)
    return shares
