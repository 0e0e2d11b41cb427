"""How fast an answer changes with what of a text is there: the graph's own weights in fp32, forward and back, in numpy.

Rounding has no slope, so this is the served network without it; where its inputs are cut it is flat. Each token has a
gate, from 1, where all is as it is served, to 0, as if it had been taken out: what others attend of it is multiplied by
its gate before shares are taken, and so is its part in the mean that the answer is read from. Needs neither torch nor
the onnx package.
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
Back = Callable[[Floats], Floats]
"""The gradient by an operation's result to that by its input."""


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """`rows` (variants, outputs); `back` takes the gradient by them to that by the gates, (variants, length)."""

    rows: Floats
    backward: Back


@dataclass(frozen=True, slots=True)
class Norm:
    weight: Floats
    bias: Floats
    epsilon: float

    def run(self, hidden: Floats) -> tuple[Floats, Back]:
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        scale = 1 / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.float32(self.epsilon))
        unit = centred * scale

        def back(slope: Floats) -> Floats:
            own = slope * self.weight
            own = own - own.mean(axis=-1, keepdims=True) - unit * (own * unit).mean(axis=-1, keepdims=True)
            return np.asarray(own * scale)

        return unit * self.weight + self.bias, back


@dataclass(frozen=True, slots=True)
class Linear:
    """`weight` (inputs, outputs). Inputs are cut to `bounds` where the network learned to have them cut."""

    weight: Floats
    bias: Floats
    bounds: tuple[np.float32, np.float32] | None

    def run(self, hidden: Floats) -> tuple[Floats, Back]:
        bounded = hidden if self.bounds is None else hidden.clip(*self.bounds)
        inside = None if self.bounds is None else bounded == hidden

        def back(slope: Floats) -> Floats:
            own = slope @ self.weight.T
            return np.asarray(own if inside is None else own * inside)

        return bounded @ self.weight + self.bias, back


@dataclass(frozen=True, slots=True)
class Layer:
    """One post-norm transformer layer, as `models.graph.builder.add_standard_layer` writes it."""

    heads: int
    together: Linear
    mixing: Linear
    attended: Norm
    wide: Linear
    narrow: Linear
    done: Norm

    def run(self, hidden: Floats, openness: Floats) -> tuple[Floats, Callable[[Floats], tuple[Floats, Floats]]]:
        """`hidden` (variants, length, width), `openness` (variants, length) the logarithm of the gates."""
        joined, back_joined = self.together.run(hidden)
        mixed, back_attention = self._attend(joined, openness)
        change, back_change = self.mixing.run(mixed)
        middle, back_middle = self.attended.run(change + hidden)
        widened, back_widened = self.wide.run(middle)
        active, back_active = gelu(widened)
        last, back_last = self.narrow.run(active)
        result, back_result = self.done.run(last + middle)

        def back(slope: Floats) -> tuple[Floats, Floats]:
            own = back_result(slope)
            own = back_middle(own + back_widened(back_active(back_last(own))))
            by_joined, by_openness = back_attention(back_change(own))
            return own + back_joined(by_joined), by_openness

        return result, back

    def _attend(self, joined: Floats, openness: Floats) -> tuple[Floats, Callable[[Floats], tuple[Floats, Floats]]]:
        """Queries, keys and values (variants, length, 3 width) to what each token takes, (variants, length, width)."""
        variants, length, wide = joined.shape
        parts = joined.reshape(variants, length, 3, self.heads, -1).transpose(2, 0, 3, 1, 4)
        queries, keys, values = parts[0] / np.sqrt(np.float32(parts.shape[-1])), parts[1], parts[2]
        scores = queries @ keys.swapaxes(-1, -2) + openness[:, None, None, :]
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        taken = (shares @ values).swapaxes(1, 2).reshape(variants, length, wide // 3)

        def back(slope: Floats) -> tuple[Floats, Floats]:
            own = slope.reshape(variants, length, self.heads, -1).swapaxes(1, 2)
            by_shares = own @ values.swapaxes(-1, -2)
            by_scores = shares * (by_shares - (by_shares * shares).sum(axis=-1, keepdims=True))
            by_queries = by_scores @ keys / np.sqrt(np.float32(parts.shape[-1]))
            by_parts = np.stack([by_queries, by_scores.swapaxes(-1, -2) @ queries, shares.swapaxes(-1, -2) @ own])
            return by_parts.transpose(1, 3, 0, 2, 4).reshape(joined.shape), by_scores.sum(axis=(1, 2))

        return taken, back


class Gradients:
    """Of a bundle's CPU graph; raises ValueError for one that it cannot follow, such as that for GPUs."""

    def __init__(self, path: Path) -> None:
        stored = read_graph_weights(path)
        weights = dequantize(stored.tensors)
        # Copies, since the others are parts of the whole file; but for what is mapped from a file of its own.
        words = {name: stored.tensors[name] for name in (WORDS_FP32, WORDS_INT8, WORDS_SCALE) if name in stored.tensors}
        self._words = {name: own if isinstance(own, np.memmap) else own.copy() for name, own in words.items()}
        self._types = weights[TYPE_EMBEDDINGS]
        self._positions = weights[POSITION_EMBEDDINGS]
        self._norm = norm_of(weights, EMBEDDING_NORM, stored.epsilon)
        self._layers = [layer_of(weights, names, stored.heads, stored.epsilon) for names in find_layers(weights)]
        self._head = linear_of(weights, HEAD) if HEAD_WEIGHT in weights else None

    def run(self, tokens: Encoding, gates: Floats) -> ForwardPass:
        """One text with several settings of its tokens' gates, (variants, length), each above 0 and at most 1."""
        words = (
            word_embeddings(self._words, tokens.ids)
            + self._types[tokens.token_types]
            + self._positions[: tokens.length]
        )
        hidden = np.repeat(self._norm.run(words)[0][None], len(gates), axis=0)
        openness, backs = np.log(gates), []
        for layer in self._layers:
            hidden, back_layer = layer.run(hidden, openness)
            backs.append(back_layer)
        own = pooling_weights(tokens) * gates
        total = own.sum(axis=1, keepdims=True)
        pooled = ((own / total)[:, None, :] @ hidden)[:, 0]
        rows, back_head = (pooled, unchanged) if self._head is None else self._head.run(pooled)

        def back(slope: Floats) -> Floats:
            by_pooled = back_head(slope)
            by_gates = pooling_weights(tokens) / total * ((hidden - pooled[:, None]) @ by_pooled[:, :, None])[:, :, 0]
            by_hidden = (own / total)[:, :, None] * by_pooled[:, None, :]
            for back_layer in reversed(backs):
                by_hidden, by_openness = back_layer(by_hidden)
                by_gates = by_gates + by_openness / gates
            return np.asarray(by_gates)

        return ForwardPass(rows, back)


def unchanged(slope: Floats) -> Floats:
    return slope


def gelu(value: Floats) -> tuple[Floats, Back]:
    below = (1 + erf(value / np.sqrt(np.float32(2)))) / 2

    def back(slope: Floats) -> Floats:
        density = np.exp(-(value**2) / 2) / np.sqrt(np.float32(2 * np.pi))
        return np.asarray(slope * (below + value * density))

    return value * below, back


def norm_of(weights: dict[str, Floats], name: str, epsilon: float) -> Norm:
    return Norm(weights[f"{name}.weight"], weights[f"{name}.bias"], epsilon)


def linear_of(weights: dict[str, Floats], name: str, zero: int = SIGNED_ZERO) -> Linear:
    return Linear(weights[f"{name}.weight"].T, weights[f"{name}.bias"], bounds_of(weights, name, zero))


def bounds_of(weights: dict[str, Floats], name: str, zero: int) -> tuple[np.float32, np.float32] | None:
    if (log_step := weights.get(f"{name}.{LOG_STEP}")) is None:
        return None
    step = np.exp(np.float32(log_step))
    return step * np.float32(-zero), step * np.float32(ACTIVATION_LEVELS - zero)


def layer_of(weights: dict[str, Floats], names: LayerNames, heads: int, epsilon: float) -> Layer:
    together = Linear(
        np.concatenate([weights[f"{part}.weight"].T for part in names.parts], axis=1),
        np.concatenate([weights[f"{part}.bias"] for part in names.parts]),
        bounds_of(weights, names.parts[0], SIGNED_ZERO),
    )
    return Layer(
        heads=heads,
        together=together,
        mixing=linear_of(weights, names.attention_output),
        attended=norm_of(weights, names.attention_norm, epsilon),
        wide=linear_of(weights, names.intermediate),
        narrow=linear_of(weights, names.output, GELU_ZERO),
        done=norm_of(weights, names.output_norm, epsilon),
    )
