"""Eight-bit arithmetic as the exported graph does it, for a network that is trained to bear it.

Every linear layer of the encoder sees its input rounded to 8 bits, with one step for all tokens that training learns
(Esser et al. 2020, learned step size quantization), and its weights rounded to 7 bits with one scale for each output.
A step is a constant, so an answer never depends on its batch, and the graph need not look for each token's largest
value. Seven bits, because on processors without VNNI the products of two pairs overflow 16 bits. Knows torch; the same
rounding in numpy and ONNX is in `models.graph.builder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from models.graph.names import LOG_STEP
from models.graph.weights import ACTIVATION_LEVELS, GELU_ZERO, SIGNED_ZERO
from models.graph.writer import WEIGHT_LEVELS
from models.networks.encoder import AnyNetwork, Network, encoder_layers, keep_layers

SAMPLED_ROWS = 2048
"""Tokens whose states a step is first fitted to."""

SHARES = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.12, 0.08)
"""Of the largest value, where the range may end at first: a few huge values would cost all others their precision."""


class LearnedStepQuantization(torch.autograd.Function):
    """Values in whole steps within a range; the gradient passes where nothing was cut, and the step has one of its own.

    The step by which its reader multiplies must be detached: that gradient is counted here.
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, log_step: Tensor, lowest: int, highest: int) -> Tensor:
        step = log_step.exp()
        exact = value.float() / step
        whole = exact.round().clamp_(lowest, highest)
        ctx.save_for_backward(exact, whole, step)
        ctx.highest = highest
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        exact, whole, step = ctx.saved_tensors
        gradient = gradients[0] / step
        change = whole - exact
        inside = change.abs() <= 0.5
        change = torch.where(inside, change, whole)
        # Scaled as the paper does, so that the one step of many values does not drown their own gradients.
        own = torch.dot(gradient.float().flatten(), change.flatten()) * step / (exact.numel() * ctx.highest) ** 0.5
        return gradient * inside, own, None, None


class QuantizedLinear(nn.Module):
    """A linear layer on rounded inputs and weights. Layers that read the same input share its `log_step`.

    It multiplies whole numbers and scales the sums, as the graph does: exact in fp32 below 2^24, and each factor in
    bfloat16 too.
    """

    def __init__(self, plain: nn.Linear, log_step: nn.Parameter, zero: int) -> None:
        super().__init__()
        self.weight, self.bias, self.log_step = plain.weight, plain.bias, log_step
        self.lowest, self.highest = -zero, ACTIVATION_LEVELS - zero

    def forward(self, hidden: Tensor) -> Tensor:
        whole: Tensor = LearnedStepQuantization.apply(hidden, self.log_step, self.lowest, self.highest)  # type: ignore[no-untyped-call]
        scale = quantization_scale(self.weight.detach(), WEIGHT_LEVELS)
        weight = self.weight / scale
        sums = linear(whole, straight_through(weight, weight.detach().round()))
        return sums * (self.log_step.detach().exp() * scale.squeeze(-1)) + self.bias


class StraightThrough(torch.autograd.Function):
    """`rounded` with the gradient of `value` (Bengio et al. 2013): two passes over memory less than by adding."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, rounded: Tensor) -> Tensor:
        return rounded.view_as(rounded)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight_through(value: Tensor, rounded: Tensor) -> Tensor:
    result: Tensor = StraightThrough.apply(value, rounded)  # type: ignore[no-untyped-call]
    return result


def quantization_scale(value: Tensor, levels: int) -> Tensor:
    """Of each row (last axis, kept as 1), so that it lies on `levels` even steps to either side of zero."""
    return value.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-12) / levels


@torch.no_grad()
def round_rows(value: Tensor, levels: int) -> Tensor:
    """Each row (last axis) on `levels` even steps to either side of zero."""
    scale = quantization_scale(value, levels)
    return (value / scale).round_().mul_(scale)


def quantize_encoder(model: Network) -> None:
    """Replace every linear layer of the encoder's layers, in place; the names of the weights stay.

    Steps begin at 1: load them, or fit them beforehand with `fit_steps`.
    """
    for group, zero in record_inputs(model):
        log_step = nn.Parameter(torch.zeros(()))
        for owner, name in group:
            setattr(owner, name, QuantizedLinear(getattr(owner, name), log_step, zero))


def record_inputs(model: Network) -> Iterator[tuple[list[tuple[Any, str]], int]]:
    """For each input that linear layers read: those layers, as attributes of their owners, and its zero point."""
    for layer in encoder_layers(model):
        attention: Any = layer.attention
        yield [(attention.self, name) for name in ("query", "key", "value")], SIGNED_ZERO
        yield [(attention.output, "dense")], SIGNED_ZERO
        yield [(layer.intermediate, "dense")], SIGNED_ZERO
        yield [(layer.output, "dense")], GELU_ZERO


def fit_steps(model: Network, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> list[float]:
    """The step of each of `inputs_of`, of the least squared error on what a plain model's layers read.

    `batches` are ids, mask and types, each (batch, length).
    """
    seen: list[list[Tensor]] = []
    hooks = []
    masks: list[Tensor] = []

    def keep(into: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, given: into.append(given[0][masks[-1]])

    for group, _ in record_inputs(model):
        owner, name = group[0]
        seen.append([])
        hooks.append(getattr(owner, name).register_forward_pre_hook(keep(seen[-1])))
    with torch.no_grad():
        for ids, mask, types in batches:
            masks.append(mask.bool())
            model(ids, mask, types)
    for hook in hooks:
        hook.remove()
    return [
        fit_step(torch.cat(rows)[:SAMPLED_ROWS], zero)
        for rows, (_, zero) in zip(seen, record_inputs(model), strict=True)
    ]


def fit_step(value: Tensor, zero: int) -> float:
    lowest, highest = -zero, ACTIVATION_LEVELS - zero
    peak = float(value.abs().max().clamp_min(1e-6))
    steps = [peak * share / highest for share in SHARES]

    def error(step: float) -> float:
        return float(((value / step).round().clamp(lowest, highest) * step - value).square().sum())

    return min(steps, key=error)


def set_steps(model: Network, steps: Iterable[float]) -> None:
    """Of a quantized model, in the order of `inputs_of`."""
    for (group, _), step in zip(record_inputs(model), steps, strict=True):
        owner, name = group[0]
        getattr(owner, name).log_step.data.fill_(step).log_()


def load_trained(model: AnyNetwork, weights: Mapping[str, Tensor], layers: Sequence[int] | None) -> AnyNetwork:
    """The network with what training left, ready to evaluate: of these layers alone, rounding where it learned to."""
    if layers is not None:
        keep_layers(model, layers)
    if any(name.endswith(LOG_STEP) for name in weights):
        quantize_encoder(model)
    model.load_state_dict(weights)
    return model.eval()
