from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from models.graph.builder import EMBEDDING_LEVELS, build_graph
from models.graph.names import WORD_EMBEDDINGS
from models.graph.weights import GELU_ZERO, SIGNED_ZERO
from models.graph.writer import WEIGHT_LEVELS, Precision, quantize
from models.networks.encoder import Classifier, graph_weights, keep_layers
from models.networks.quantization import (
    LearnedStepQuantization,
    QuantizedLinear,
    fit_step,
    fit_steps,
    quantize_encoder,
    round_rows,
    set_steps,
)
from models.networks.torch_runtime import TorchRuntime
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch, Encoding, collate
from tests.support.tiny_networks import tiny_encoder


@pytest.fixture(scope="module")
def network() -> Classifier:
    return Classifier(tiny_encoder(5, 100, width=64, layers=4, spread=0.2), width=64, labels=3).eval()


@pytest.fixture(scope="module")
def texts() -> Batch:
    rng = np.random.default_rng(6)
    lengths = rng.integers(3, 30, 16)
    return collate([Encoding(rng.integers(5, 100, n), np.zeros(n, np.int64), False, "en") for n in lengths], 1)


@pytest.fixture(scope="module")
def student(network: Classifier, texts: Batch) -> Classifier:
    """A quantised network, with steps so small that the largest values are clipped."""
    rounded = deepcopy(network)
    steps = fit_steps(
        rounded, [(torch.from_numpy(texts.ids), torch.from_numpy(texts.mask), torch.from_numpy(texts.token_types))]
    )
    quantize_encoder(rounded)
    set_steps(rounded, [step / 2 for step in steps])
    words = rounded.get_parameter(WORD_EMBEDDINGS)
    words.data = round_rows(words.data, EMBEDDING_LEVELS)
    return rounded.eval()


@pytest.mark.parametrize("storage", ["int8", "mixed", "fp32", "fp16"])
def test_the_graphs_of_a_student_compute_as_in_its_training(
    network: Classifier, student: Classifier, texts: Batch, storage: Precision, tmp_path: Path
) -> None:
    """The graph is at least four times nearer to the student than the plain network is, the 8-bit graph ten times."""
    onnx.save(
        build_graph(graph_weights(student), heads=4, epsilon=1e-12, precision=storage), str(tmp_path / "graph.onnx")
    )
    output = OnnxRuntime(tmp_path / "graph.onnx").run(texts)
    near = np.abs(output - TorchRuntime(student).run(texts)).mean()
    far = np.abs(TorchRuntime(network).run(texts) - TorchRuntime(student).run(texts)).mean()
    assert near < far / (10 if storage == "int8" else 4)


def test_the_8_bit_graph_of_a_network_without_steps_rounds_each_token_by_its_largest_value(
    network: Classifier, texts: Batch, tmp_path: Path
) -> None:
    onnx.save(
        build_graph(graph_weights(network), heads=4, epsilon=1e-12, precision="int8"), str(tmp_path / "graph.onnx")
    )
    plain = TorchRuntime(network).run(texts)
    assert np.abs(OnnxRuntime(tmp_path / "graph.onnx").run(texts) - plain).mean() < 0.1 * np.ptp(plain)


def test_quantisation_keeps_the_names_of_the_weights(network: Classifier, student: Classifier) -> None:
    weights = graph_weights(student)
    assert {name for name in weights if not name.endswith("log_step")} == graph_weights(network).keys()


def test_layers_that_read_the_same_input_share_its_step(student: Classifier) -> None:
    weights = graph_weights(student)
    steps = [weights[f"encoder.encoder.layer.2.attention.self.{name}.log_step"] for name in ("query", "key", "value")]
    assert steps[0] == steps[1] == steps[2]
    assert len({float(value) for name, value in weights.items() if name.endswith("log_step")}) == 4 * 4


def test_weights_are_rounded_in_torch_as_in_the_graph() -> None:
    value = torch.randn(7, 40, generator=torch.Generator().manual_seed(1))
    whole, scale = quantize(value.numpy(), axis=1, levels=WEIGHT_LEVELS)
    np.testing.assert_allclose(round_rows(value, WEIGHT_LEVELS).numpy(), whole * scale[:, None], atol=1e-6)


def test_the_fitted_step_balances_clipping_and_rounding() -> None:
    value = torch.randn(400_000, generator=torch.Generator().manual_seed(2)).pow(3)
    peak = float(value.abs().max())
    step = fit_step(value, SIGNED_ZERO)
    assert step < 0.9 * peak / 127
    unclipped, clipped = (
        float((dequantized(value, size, SIGNED_ZERO) - value).square().sum()) for size in (peak / 127, step)
    )
    assert clipped < unclipped


def test_the_range_after_a_gelu_covers_all_negative_values() -> None:
    value = nn.functional.gelu(torch.linspace(-6, 6, 4001))
    step = fit_step(value, GELU_ZERO)
    rounded = dequantized(value, step, GELU_ZERO)
    assert float((rounded - value).abs().max()) <= step / 2 + 1e-6


def dequantized(value: torch.Tensor, step: float, zero: int) -> torch.Tensor:
    whole: torch.Tensor = LearnedStepQuantization.apply(value, torch.tensor(step).log(), -zero, 255 - zero)  # type: ignore[no-untyped-call]
    return whole * step


def test_the_gradient_of_a_step_counts_rounded_and_clipped_values() -> None:
    """Clipped values ask for a larger step. Without clipping the squared error is flat."""
    for peak in (1.0, 3.0):
        value = torch.linspace(-peak, peak, 301) + 0.001
        log_step = torch.tensor(2.0 / 255).log().requires_grad_()
        whole = LearnedStepQuantization.apply(value, log_step, -128, 127)  # type: ignore[no-untyped-call]
        torch.autograd.backward((whole * log_step.detach().exp() - value).square().sum())
        assert log_step.grad is not None
        if peak == 3.0:
            assert float(log_step.grad) < 0  # clipped values want a larger step
        else:
            assert abs(float(log_step.grad)) < 1e-4


def test_gradients_pass_the_rounding_of_unclipped_values() -> None:
    plain = nn.Linear(8, 4)
    layer = QuantizedLinear(plain, nn.Parameter(torch.tensor(0.02).log()), SIGNED_ZERO)
    hidden = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
    hidden[0, 0] = 9.0
    hidden.requires_grad_()
    torch.autograd.backward(layer(hidden).sum())
    assert plain.weight.grad is not None
    assert hidden.grad is not None
    torch.testing.assert_close(plain.weight.grad[:, 1:], hidden.detach().sum(0)[1:].expand(4, 7), rtol=0.05, atol=0.05)
    assert float(hidden.grad[0, 0]) == 0
    assert float(hidden.grad[1:].abs().min()) > 0


def test_a_layer_multiplies_whole_numbers_that_16_bits_hold_exactly() -> None:
    generator = torch.Generator().manual_seed(4)
    layer = QuantizedLinear(nn.Linear(64, 8), nn.Parameter(torch.tensor(0.02).log()), SIGNED_ZERO).eval()
    hidden = torch.randn(50, 64, generator=generator)
    with torch.no_grad():
        exact = layer(hidden)
        with torch.autocast("cpu", torch.bfloat16):
            narrow = layer(hidden)
    # bfloat16 rounds each sum once, to 8 bits; factors rounded by it would differ by far more on sums near zero.
    unbiased = (exact - layer.bias.detach()).abs().clamp_min(1e-6)
    assert float(((narrow - exact).abs() / unbiased).max()) < 2**-7


def test_only_the_chosen_layers_remain_in_order(network: Classifier) -> None:
    shallow = keep_layers(deepcopy(network), [1, 3])
    weights, all_weights = graph_weights(shallow), graph_weights(network)
    for index, layer in enumerate((1, 3)):
        name = "encoder.encoder.layer.{}.output.dense.weight"
        np.testing.assert_array_equal(weights[name.format(index)], all_weights[name.format(layer)])
    assert name.format(2) not in weights
    assert shallow.encoder.config.num_hidden_layers == 2
