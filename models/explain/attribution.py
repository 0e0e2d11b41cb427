"""The attribution methods: functions that give each feature of an input a weight, and the table that lists them.

A score method calls a score function with some of the features removed. A gradient method integrates the gradient of
the score, and an attention method reads attention maps. Knows no texts, bundles or runtimes.

To add a method, write its function and its row of METHODS here. Then name it in `models.explain.methods`, beside the
tasks that support it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from models.explain.methods import MethodName
from models.text.encoding import Encoding

if TYPE_CHECKING:
    from models.explain.attention_maps import AttentionMaps


PERMUTATIONS = 10
"""The number of orders that Shapley values are sampled in, in pairs of an order and its reverse."""

POINTS, MAX_POINTS = 8, 512
"""The number of points per segment of the path at which gradients are computed, and the limit for the whole path."""

ROOT = 3
MIN_SHARE = 1e-9
"""The share of a feature that stands for its absence. Closer to 0 nothing more changes."""

COMPLETENESS_TOLERANCE = 0.01
"""The error that the sum of gradient weights may have, as a share of the whole change of the score."""

MIN_CHANGE = 1e-3
"""The least change, in points of the score, that COMPLETENESS_TOLERANCE is a share of."""

Weights = NDArray[np.float64]

Score = Callable[[NDArray[np.bool_]], NDArray[np.float64]]
"""Maps masks of the features to keep, (variants, features), to the score of each variant, (variants,)."""

Gradient = Callable[[NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Maps the share of all features that is present to scores and gradients.

The shares (points,) are above 0 and at most 1. The result is the score at each point, (points,), and its gradient with
respect to each feature, (points, features).
"""


def occlusion(score: Score, features: int) -> Weights:
    """Return the loss of score without each feature, (features,) (Zeiler & Fergus 2014; leave one out)."""
    scores = score(np.vstack([np.ones((1, features), np.bool_), ~np.eye(features, dtype=np.bool_)]))
    return np.asarray(scores[0] - scores[1:])


def two_sided_occlusion(score: Score, features: int) -> Weights:
    """Return the mean of the changes that each feature makes to the full and to the empty input, (features,).

    Shapley values are a mean over orders, and these are the two ends of every order. Either end alone misses something:
    removal misses what a text says twice, and insertion misses what words say only together.
    """
    alone = np.eye(features, dtype=np.bool_)
    scores = score(np.vstack([np.zeros((1, features), np.bool_), alone]))
    return np.asarray((occlusion(score, features) + scores[1:] - scores[0]) / 2)


def shapley(score: Score, features: int, permutations: int) -> Weights:
    """Return the mean change that each feature makes over random orders, (features,) (Castro et al. 2009).

    Every second order is the reverse of the one before, which lowers the variance (Mitchell et al. 2022). Weights sum
    to the score of the full input less that of the empty one. The orders are the same in every call.
    """
    rng = np.random.default_rng(0)
    drawn = [rng.permutation(features) for _ in range(permutations // 2)]
    orders = [order for forward in drawn for order in (forward, forward[::-1])]
    masks = np.zeros((len(orders), features + 1, features), np.bool_)
    for index, order in enumerate(orders):
        masks[index][:, order] = np.tri(features + 1, features, -1, dtype=np.bool_)
    scores = score(masks.reshape(-1, features)).reshape(len(orders), features + 1)
    weights = np.zeros(features)
    for order, path in zip(orders, scores, strict=True):
        weights[order] += np.diff(path) / len(orders)
    return weights


def integrated_gradients(gradient: Gradient) -> Weights:
    """Return the mean gradient for each feature along the path on which all features fade in together, (features,).

    This is the integral of Sundararajan et al. (2017, eq. 1). Where features fade in, it is the price of Aumann and
    Shapley (1974): weights sum to the score of the full input less that of the empty one.

    Segments of the path are even in the ROOT-th root of the share, since the score changes most where little is
    present. The scores at its ends show the error of a segment. The segment with the largest error is halved until the
    weights are complete up to COMPLETENESS_TOLERANCE, or until MAX_POINTS is reached.
    """
    segments = [integrate_segment(gradient, 0.0, 0.5), integrate_segment(gradient, 0.5, 1.0)]
    whole = abs(sum(segment.change for segment in segments))
    while abs(sum(segment.error for segment in segments)) > COMPLETENESS_TOLERANCE * max(whole, MIN_CHANGE):
        if POINTS * (len(segments) + 1) > MAX_POINTS:
            break
        worst = max(segments, key=lambda segment: abs(segment.error))
        middle = (worst.start + worst.end) / 2
        segments.remove(worst)
        segments += [integrate_segment(gradient, worst.start, middle), integrate_segment(gradient, middle, worst.end)]
    return np.asarray(sum(segment.weights for segment in segments))


@dataclass(frozen=True, slots=True, eq=False)
class PathSegment:
    """A segment of the path: the change of the score along it, and the integrals of its gradient, (features,)."""

    start: float
    end: float
    change: float
    weights: Weights

    @property
    def error(self) -> float:
        return float(self.weights.sum()) - self.change


def integrate_segment(gradient: Gradient, start: float, end: float) -> PathSegment:
    """Integrate the gradient by Gauss-Legendre quadrature."""
    nodes, node_weights = np.polynomial.legendre.leggauss(POINTS)
    roots = start + (end - start) * np.concatenate([[0], (nodes + 1) / 2, [1]])
    scores, gradients = gradient(np.maximum(roots**ROOT, MIN_SHARE))
    steps = node_weights / 2 * (end - start) * ROOT * roots[1:-1] ** (ROOT - 1)
    return PathSegment(start, end, float(scores[-1] - scores[0]), steps @ gradients[1:-1])


def pooling_weights(tokens: Encoding) -> NDArray[np.float32]:
    """Return the share of each token's last state in the output, (length,).

    `models.networks.encoder.pool_hidden` pools with the same weights.
    """
    chosen = tokens.token_types if tokens.has_entity else np.ones_like(tokens.token_types)
    return np.asarray(chosen / chosen.sum(), np.float32)


def attention_attribution(maps: AttentionMaps, pooling: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the attention of the output to each token in the last layer of a text, mean over heads, (length,)."""
    return np.asarray(pooling @ maps.attention(maps.layers - 1)[0].mean(axis=0))


def value_norm(maps: AttentionMaps, pooling: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return attention times the norm of the values (Kobayashi et al. 2020), mean over layers, (length,)."""
    shares = []
    for layer in range(maps.layers):
        flow = (maps.attention(layer)[0] * maps.value_norms(layer)[0][:, None, :]).mean(axis=0)
        shares.append(pooling @ (flow / flow.sum(axis=-1, keepdims=True)))
    return np.asarray(np.mean(shares, axis=0))


def rollout(maps: AttentionMaps, pooling: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the attention that flows from the output down to each input token, (length,) (Abnar & Zuidema 2020).

    In every layer half of a token comes from the token itself, past the attention.
    """
    shares: NDArray[np.float32] = pooling
    for layer in reversed(range(maps.layers)):
        shares = np.asarray((shares + shares @ maps.attention(layer)[0].mean(axis=0)) / 2)
    return shares


@dataclass(frozen=True, slots=True)
class ScoreMethod:
    """A method that sees only the scores of variants. `about` is the line that users read about it.

    `signed`: weights speak for or against the target. Other methods give shares of attention, which are at least 0.
    `additive`: the weight of a turn is the sum of the weights of its words.
    """

    attribute: Callable[[Score, int], Weights]
    about: str
    signed: bool = True
    additive: bool = False
    needs_maps: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class GradientMethod:
    """A method that sees the gradient of the score. The fields are those of ScoreMethod."""

    attribute: Callable[[Gradient], Weights]
    about: str
    signed: bool = True
    additive: bool = False
    needs_maps: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class AttentionMethod:
    """A method that sees attention maps and pooling weights, and weighs tokens. The fields are those of ScoreMethod."""

    attribute: Callable[[AttentionMaps, NDArray[np.float32]], NDArray[np.float32]]
    about: str
    signed: bool = False
    additive: bool = False
    needs_maps: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False


Method = ScoreMethod | GradientMethod | AttentionMethod

METHODS: dict[MethodName, Method] = {
    "occlusion": ScoreMethod(occlusion, "the loss of score when it alone is removed"),
    "two_sided_occlusion": ScoreMethod(
        two_sided_occlusion,
        "the mean of two changes of the score, removed from the full input and added to an empty one",
    ),
    "shapley": ScoreMethod(
        partial(shapley, permutations=PERMUTATIONS), "the mean change of the score when it is added in random order"
    ),
    "integrated_gradients": GradientMethod(
        integrated_gradients, "the mean gradient of the score while the whole input fades in", additive=True
    ),
    "value_norm": AttentionMethod(value_norm, "attention times the norm of the values, mean over layers"),
    "rollout": AttentionMethod(rollout, "attention through all layers"),
    "attention": AttentionMethod(attention_attribution, "attention of the last layer"),
}
