"""Eight-bit arithmetic as the exported graph does it, for quantisation-aware training.

Every linear layer of the encoder rounds its input to 8 bits. The step is the same for all tokens and is learned (Esser
et al. 2020, learned step size quantization). Weights are rounded to 7 bits with a scale per output. A step is a
constant, so an answer never depends on its batch, and the graph need not look for each token's largest value. Weights
have seven bits because two products overflow 16 bits on processors without VNNI. This module knows torch. The same
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

MAX_SAMPLED_TOKENS = 2048
"""Tokens to whose states a step is fitted before training."""

RANGE_SHARES = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.12, 0.08)
"""Candidate ends of the initial range, as shares of the largest value.

A range up to a few huge values would cost all the rest their precision.
"""


class LearnedStepQuantization(torch.autograd.Function):
    """Values rounded to whole steps and clipped to a range.

    The gradient passes where nothing was clipped, and the step gets a gradient too. The consumer multiplies by the step
    and must detach it, because this function already counts that gradient.
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
        # Scaled as in the paper, so that the gradient of the shared step does not drown those of its many values.
        step_gradient = (
            torch.dot(gradient.float().flatten(), change.flatten()) * step / (exact.numel() * ctx.highest) ** 0.5
        )
        return gradient * inside, step_gradient, None, None


class QuantizedLinear(nn.Module):
    """A linear layer on rounded inputs and weights. Layers that read the same input share its `log_step`.

    It multiplies whole numbers and scales the sums, as the graph does. The sums are exact in fp32 below 2^24, and the
    factors are exact in bfloat16 too.
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
    """`rounded` with the gradient of `value` (Bengio et al. 2013).

    It saves two passes over memory compared with adding a detached difference.
    """

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
    """Return the scale of each row (last axis, with size 1) for `levels` even steps to either side of zero."""
    return value.abs().amax(dim=-1, keepdim=True).clamp_min_(1e-12) / levels


@torch.no_grad()
def round_rows(value: Tensor, levels: int) -> Tensor:
    """Round each row (last axis) to `levels` even steps to either side of zero."""
    scale = quantization_scale(value, levels)
    return (value / scale).round_().mul_(scale)


def quantize_encoder(model: Network) -> None:
    """Quantise every linear layer of the encoder's layers, in place. The names of the weights stay.

    Steps begin at 1. Load them, or fit them first with `fit_steps`.
    """
    for group, zero in quantized_inputs(model):
        log_step = nn.Parameter(torch.zeros(()))
        for owner, name in group:
            setattr(owner, name, QuantizedLinear(getattr(owner, name), log_step, zero))


def quantized_inputs(model: Network) -> Iterator[tuple[list[tuple[Any, str]], int]]:
    """Yield the readers and the zero point of each input of linear layers.

    Readers are pairs of a module and the name of its linear layer.
    """
    for layer in encoder_layers(model):
        attention: Any = layer.attention
        yield [(attention.self, name) for name in ("query", "key", "value")], SIGNED_ZERO
        yield [(attention.output, "dense")], SIGNED_ZERO
        yield [(layer.intermediate, "dense")], SIGNED_ZERO
        yield [(layer.output, "dense")], GELU_ZERO


def fit_steps(model: Network, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> list[float]:
    """Return the step of each of `quantized_inputs` with the least squared error on the inputs of a plain model.

    `batches` are ids, mask and types, each (batch, length).
    """
    recorded: list[list[Tensor]] = []
    hooks = []
    masks: list[Tensor] = []

    def append_to(rows: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: rows.append(inputs[0][masks[-1]])

    for group, _ in quantized_inputs(model):
        owner, name = group[0]
        recorded.append([])
        hooks.append(getattr(owner, name).register_forward_pre_hook(append_to(recorded[-1])))
    with torch.no_grad():
        for ids, mask, types in batches:
            masks.append(mask.bool())
            model(ids, mask, types)
    for hook in hooks:
        hook.remove()
    return [
        fit_step(torch.cat(rows)[:MAX_SAMPLED_TOKENS], zero)
        for rows, (_, zero) in zip(recorded, quantized_inputs(model), strict=True)
    ]


def fit_step(value: Tensor, zero: int) -> float:
    """Return the step with the least squared error on `value`, of any shape, with this zero point."""
    lowest, highest = -zero, ACTIVATION_LEVELS - zero
    peak = float(value.abs().max().clamp_min(1e-6))
    steps = [peak * share / highest for share in RANGE_SHARES]

    def error(step: float) -> float:
        return float(((value / step).round().clamp(lowest, highest) * step - value).square().sum())

    return min(steps, key=error)


def set_steps(model: Network, steps: Iterable[float]) -> None:
    """Set the steps of a quantised model, in the order of `quantized_inputs`."""
    for (group, _), step in zip(quantized_inputs(model), steps, strict=True):
        owner, name = group[0]
        getattr(owner, name).log_step.data.fill_(step).log_()


def is_quantized(weights: Mapping[str, Tensor]) -> bool:
    """Return True for weights of a network that rounds, because they have learned steps."""
    return any(name.endswith(LOG_STEP) for name in weights)


def load_trained(model: AnyNetwork, weights: Mapping[str, Tensor], layers: Sequence[int] | None) -> AnyNetwork:
    """Load trained weights into the network and return it in evaluation mode.

    Only `layers` of the encoder remain, or all if None. It is quantised if the weights have learned steps.
    """
    if layers is not None:
        keep_layers(model, layers)
    if is_quantized(weights):
        quantize_encoder(model)
    model.load_state_dict(weights)
    return model.eval()
