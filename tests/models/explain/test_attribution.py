"""Score methods on a toy score, and attention methods on the maps of the shipped model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import SHIPPED, load_bundle
from models.explain.attention_maps import AttentionMapRuntime
from models.explain.attribution import (
    attention_attribution,
    occlusion,
    pooling_weights,
    rollout,
    shapley,
    two_sided_occlusion,
    value_norm,
)
from models.text.encoding import collate
from models.text.tokenizer import Tokenizer


def toy_score(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Score 3 for the first feature or the second, -1 for the third, and 2 for the fourth and fifth together."""
    first, second, third, fourth, fifth = masks.T
    return np.asarray(3.0 * (first | second) - third + 2.0 * (fourth & fifth))


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        (occlusion, [0, 0, -1, 2, 2]),
        (two_sided_occlusion, [1.5, 1.5, -1, 1, 1]),
        (lambda score, features: shapley(score, features, 10), [1.5, 1.5, -1, 1, 1]),
    ],
)
def test_score_methods_follow_their_definitions(
    attribute: Callable[..., NDArray[np.float64]], expected: list[float]
) -> None:
    np.testing.assert_allclose(attribute(toy_score, 5), expected)


@pytest.mark.parametrize("entity", [None, "Acme"])
def test_attention_methods_equal_their_published_definitions(entity: str | None) -> None:
    bundle = load_bundle(SHIPPED)
    tokenizer = Tokenizer.from_bundle(bundle)
    tokens = tokenizer.encode("Shares of Acme plunge after profit warning", entity)
    maps = AttentionMapRuntime(bundle.graph).run(collate([tokens], tokenizer.pad_id))
    pooled = tokens.token_types / tokens.token_types.sum() if entity else np.full(tokens.length, 1 / tokens.length)
    flow, norms, last = np.eye(tokens.length), np.zeros(tokens.length), np.zeros((tokens.length, tokens.length))
    for layer in range(maps.layers):
        last = maps.attention(layer)[0].mean(axis=0)
        flow = (last + np.eye(tokens.length)) / 2 @ flow
        values = np.einsum("htp,hpw->htw", maps.values[layer, 0], maps.output_projections[layer])
        moved = np.einsum("hij,hj->ij", maps.attention(layer)[0], np.sqrt((values**2).sum(axis=-1)))
        norms += pooled @ (moved / moved.sum(axis=1, keepdims=True)) / maps.layers
    pooling = pooling_weights(tokens)
    np.testing.assert_allclose(attention_attribution(maps, pooling), pooled @ last, atol=1e-6)
    np.testing.assert_allclose(rollout(maps, pooling), pooled @ flow, atol=1e-6)
    np.testing.assert_allclose(value_norm(maps, pooling), norms, atol=1e-6)
