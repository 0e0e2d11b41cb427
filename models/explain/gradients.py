"""Gradients of an output with respect to the presence of each token, from the graph's weights in fp32, in numpy.

Rounding has no gradient, so this runs the served network without it. Where the network clips its inputs, the gradient
is zero. Each token has a gate. At 1 the network is the served one, and at 0 the token is as if removed. The gate scales
the token's attention weights before they are normalised, and its weight in the pooled mean.
Needs neither torch nor the onnx package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import erf

from models.explain.attribution import pooling_weights
from models.graph.names import (
    EMBEDDING_NORM,
    HEAD,
    HEAD_WEIGHT,
    LOG_STEP,
    POSITION_EMBEDDINGS,
    TYPE_EMBEDDINGS,
    WORDS_FP32,
    WORDS_INT8,
    WORDS_SCALE,
    LayerNames,
    find_layers,
)
from models.graph.weights import (
    ACTIVATION_LEVELS,
    GELU_ZERO,
    SIGNED_ZERO,
    dequantize,
    read_graph_weights,
    word_embeddings,
)
from models.text.encoding import Encoding

Floats = NDArray[np.float32]
Backward = Callable[[Floats], Floats]
"""Maps the gradient with respect to an operation's result to the gradient with respect to its input."""


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """The outputs `rows` (variants, outputs), and the backward pass.

    `backward` maps the gradient with respect to the rows to the gradient with respect to the gates, (variants, length).
    """

    rows: Floats
    backward: Backward


@dataclass(frozen=True, slots=True)
class Norm:
    weight: Floats
    bias: Floats
    epsilon: float

    def run(self, hidden: Floats) -> tuple[Floats, Backward]:
        centered = hidden - hidden.mean(axis=-1, keepdims=True)
        scale = 1 / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + np.float32(self.epsilon))
        unit = centered * scale

        def backward(gradient: Floats) -> Floats:
            by_unit = gradient * self.weight
            by_unit = (
                by_unit - by_unit.mean(axis=-1, keepdims=True) - unit * (by_unit * unit).mean(axis=-1, keepdims=True)
            )
            return np.asarray(by_unit * scale)

        return unit * self.weight + self.bias, backward


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer with `weight` (inputs, outputs). Inputs are clipped to `bounds` if the network learned them."""

    weight: Floats
    bias: Floats
    bounds: tuple[np.float32, np.float32] | None

    def run(self, hidden: Floats) -> tuple[Floats, Backward]:
        bounded = hidden if self.bounds is None else hidden.clip(*self.bounds)
        inside = None if self.bounds is None else bounded == hidden

        def backward(gradient: Floats) -> Floats:
            by_input = gradient @ self.weight.T
            return np.asarray(by_input if inside is None else by_input * inside)

        return bounded @ self.weight + self.bias, backward


@dataclass(frozen=True, slots=True)
class Layer:
    """One post-norm transformer layer, as `models.graph.builder.add_standard_layer` writes it."""

    heads: int
    query_key_value: Linear
    attention_output: Linear
    attention_norm: Norm
    intermediate: Linear
    output: Linear
    output_norm: Norm

    def run(self, hidden: Floats, log_gates: Floats) -> tuple[Floats, Callable[[Floats], tuple[Floats, Floats]]]:
        """Run the layer on `hidden` (variants, length, width), with `log_gates` (variants, length)."""
        joined, joined_backward = self.query_key_value.run(hidden)
        attended, attention_backward = self._attend(joined, log_gates)
        projected, projection_backward = self.attention_output.run(attended)
        middle, middle_backward = self.attention_norm.run(projected + hidden)
        widened, widened_backward = self.intermediate.run(middle)
        active, active_backward = gelu(widened)
        narrowed, narrowed_backward = self.output.run(active)
        result, result_backward = self.output_norm.run(narrowed + middle)

        def backward(gradient: Floats) -> tuple[Floats, Floats]:
            by_sum = result_backward(gradient)
            by_sum = middle_backward(by_sum + widened_backward(active_backward(narrowed_backward(by_sum))))
            by_joined, by_log_gate = attention_backward(projection_backward(by_sum))
            return by_sum + joined_backward(by_joined), by_log_gate

        return result, backward

    def _attend(self, joined: Floats, log_gates: Floats) -> tuple[Floats, Callable[[Floats], tuple[Floats, Floats]]]:
        """Map queries, keys and values, (variants, length, 3 width), to attended values, (variants, length, width)."""
        variants, length, width = joined.shape
        parts = joined.reshape(variants, length, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
        queries, keys, values = parts[0] / np.sqrt(np.float32(parts.shape[-1])), parts[1], parts[2]
        scores = queries @ keys.swapaxes(-1, -2) + log_gates[:, None, None, :]
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        attended = (shares @ values).swapaxes(1, 2).reshape(variants, length, width // 3)

        def backward(gradient: Floats) -> tuple[Floats, Floats]:
            by_head = gradient.reshape(variants, length, self.heads, -1).swapaxes(1, 2)
            by_share = by_head @ values.swapaxes(-1, -2)
            by_score = shares * (by_share - (by_share * shares).sum(axis=-1, keepdims=True))
            by_query = by_score @ keys / np.sqrt(np.float32(parts.shape[-1]))
            by_part = np.stack([by_query, by_score.swapaxes(-1, -2) @ queries, shares.swapaxes(-1, -2) @ by_head])
            return by_part.transpose(1, 3, 0, 2, 4).reshape(joined.shape), by_score.sum(axis=(1, 2))

        return attended, backward


class Gradients:
    """Gradients of a bundle's CPU graph. Raises ValueError for a graph that it cannot follow, such as one for GPUs."""

    def __init__(self, path: Path) -> None:
        stored = read_graph_weights(path)
        weights = dequantize(stored.tensors)
        words = {name: stored.tensors[name] for name in (WORDS_FP32, WORDS_INT8, WORDS_SCALE) if name in stored.tensors}
        # A copy lets go of the bytes of the whole file. A tensor mapped from its own file needs none.
        self._words = {
            name: tensor if isinstance(tensor, np.memmap) else tensor.copy() for name, tensor in words.items()
        }
        self._types = weights[TYPE_EMBEDDINGS]
        self._positions = weights[POSITION_EMBEDDINGS]
        self._norm = read_norm(weights, EMBEDDING_NORM, stored.epsilon)
        self._layers = [read_layer(weights, names, stored.heads, stored.epsilon) for names in find_layers(weights)]
        self._head = read_linear(weights, HEAD) if HEAD_WEIGHT in weights else None

    def run(self, tokens: Encoding, gates: Floats) -> ForwardPass:
        """Run one text with several variants of its gates, (variants, length), each above 0 and at most 1."""
        words = (
            word_embeddings(self._words, tokens.ids)
            + self._types[tokens.token_types]
            + self._positions[: tokens.length]
        )
        hidden = np.repeat(self._norm.run(words)[0][None], len(gates), axis=0)
        log_gates, layers_backward = np.log(gates), []
        for layer in self._layers:
            hidden, layer_backward = layer.run(hidden, log_gates)
            layers_backward.append(layer_backward)
        pooling = pooling_weights(tokens) * gates
        total = pooling.sum(axis=1, keepdims=True)
        pooled = ((pooling / total)[:, None, :] @ hidden)[:, 0]
        rows, head_backward = (pooled, identity) if self._head is None else self._head.run(pooled)

        def backward(gradient: Floats) -> Floats:
            by_pooled = head_backward(gradient)
            by_gate = pooling_weights(tokens) / total * ((hidden - pooled[:, None]) @ by_pooled[:, :, None])[:, :, 0]
            by_hidden = (pooling / total)[:, :, None] * by_pooled[:, None, :]
            for layer_backward in reversed(layers_backward):
                by_hidden, by_log_gate = layer_backward(by_hidden)
                by_gate = by_gate + by_log_gate / gates
            return np.asarray(by_gate)

        return ForwardPass(rows, backward)


def identity(gradient: Floats) -> Floats:
    return gradient


def gelu(value: Floats) -> tuple[Floats, Backward]:
    cumulative = (1 + erf(value / np.sqrt(np.float32(2)))) / 2

    def backward(gradient: Floats) -> Floats:
        density = np.exp(-(value**2) / 2) / np.sqrt(np.float32(2 * np.pi))
        return np.asarray(gradient * (cumulative + value * density))

    return value * cumulative, backward


def read_norm(weights: dict[str, Floats], name: str, epsilon: float) -> Norm:
    return Norm(weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)


def read_linear(weights: dict[str, Floats], name: str, zero: int = SIGNED_ZERO) -> Linear:
    return Linear(weights[f"{name}.weight"].T, weights[f"{name}.bias"], read_bounds(weights, name, zero))


def read_bounds(weights: dict[str, Floats], name: str, zero: int) -> tuple[np.float32, np.float32] | None:
    if (log_step := weights.get(f"{name}.{LOG_STEP}")) is None:
        return None
    step = np.exp(np.float32(log_step))
    return step * np.float32(-zero), step * np.float32(ACTIVATION_LEVELS - zero)


def read_layer(weights: dict[str, Floats], names: LayerNames, heads: int, epsilon: float) -> Layer:
    query_key_value = Linear(
        np.concatenate([weights[f"{part}.weight"].T for part in names.parts], axis=1),
        np.concatenate([weights[f"{part}.bias"] for part in names.parts]),
        read_bounds(weights, names.parts[0], SIGNED_ZERO),
    )
    return Layer(
        heads=heads,
        query_key_value=query_key_value,
        attention_output=read_linear(weights, names.attention_output),
        attention_norm=read_norm(weights, names.attention_norm, epsilon),
        intermediate=read_linear(weights, names.intermediate),
        output=read_linear(weights, names.output, GELU_ZERO),
        output_norm=read_norm(weights, names.output_norm, epsilon),
    )
