"""Eight-bit arithmetic as the exported graph does it, for a network that is trained to bear it.

Every linear layer of the encoder sees its input rounded to 8 bits with one scale for each token, and its weights
rounded to 7 bits with one scale for each output. A token's scale depends on that token alone, so an answer never
depends on its batch. Seven bits, because on processors without VNNI the products of two pairs overflow 16 bits.
Knows torch; the same rounding in numpy and ONNX is in `models.graph`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.graph import GELU_LEAST, GELU_LEVELS, GELU_ZERO, SIGNED_LEVELS, WEIGHT_LEVELS
from models.network import Classifier, encoder_layers


class RoundedLinear(nn.Module):
    """A linear layer on rounded inputs and weights; gradients pass the rounding (Bengio et al. 2013)."""

    def __init__(self, plain: nn.Linear, after_gelu: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.after_gelu = plain.weight, plain.bias, after_gelu

    def forward(self, hidden: Tensor) -> Tensor:
        rounded = rounded_gelu(hidden) if self.after_gelu else rounded_rows(hidden, SIGNED_LEVELS)
        weight = through(self.weight, rounded_rows(self.weight, WEIGHT_LEVELS))
        return linear(through(hidden, rounded), weight, self.bias)


class Through(torch.autograd.Function):
    """`rounded` with the gradient of `value`: two passes over memory less than by adding and detaching."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def through(value: Tensor, rounded: Tensor) -> Tensor:
    result: Tensor = Through.apply(value, rounded)  # type: ignore[no-untyped-call]
    return result


@torch.no_grad()
def rounded_rows(value: Tensor, levels: int) -> Tensor:
    """Each row (last axis) on `levels` even steps to either side of zero."""
    scale = value.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-12) / levels
    return (value / scale).round_().mul_(scale)


@torch.no_grad()
def rounded_gelu(value: Tensor) -> Tensor:
    """Each row of what a GELU gave, on GELU_LEVELS even steps up to its maximum."""
    step = value.amax(dim=-1, keepdim=True).clamp_min_(GELU_LEVELS * GELU_LEAST / GELU_ZERO) / GELU_LEVELS
    return (value / step).round_().mul_(step)


def quantize_encoder(model: Classifier) -> None:
    """Replace every linear layer of the encoder's layers, in place; the names of the weights stay."""
    for layer in encoder_layers(model):
        attention: Any = layer.attention
        for name in ("query", "key", "value"):
            setattr(attention.self, name, RoundedLinear(getattr(attention.self, name), after_gelu=False))
        for part, after_gelu in ((attention.output, False), (layer.intermediate, False), (layer.output, True)):
            plain: Any = part
            plain.dense = RoundedLinear(plain.dense, after_gelu)
