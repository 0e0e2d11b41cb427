from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from models.graph import EMBEDDING_LEVELS, GELU_LEAST, GELU_LEVELS, WEIGHT_LEVELS, build, quantize
from models.network import WORD_EMBEDDINGS, Classifier, graph_weights, keep_layers
from models.quantize import RoundedLinear, quantize_encoder, rounded_gelu, rounded_rows
from models.runtime_onnx import OnnxRuntime
from models.runtime_torch import TorchRuntime
from models.tokens import Tokens, collate


@pytest.fixture(scope="module")
def network() -> Classifier:
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=100,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        initializer_range=0.2,
    )
    return Classifier(BertModel(config, add_pooling_layer=False), width=64, labels=3).eval()


def test_the_8_bit_graph_computes_what_the_student_was_trained_with(network: Classifier, tmp_path: Path) -> None:
    """Near the rounded network, and several times nearer to it than to the plain one."""
    rng = np.random.default_rng(6)
    lengths = rng.integers(3, 30, 16)
    batch = collate([Tokens(rng.integers(5, 100, n), np.zeros(n, np.int64), False, "en") for n in lengths], 1)
    weights = graph_weights(network)
    onnx.save(build(weights, heads=4, epsilon=1e-12, storage="int8"), str(tmp_path / "int8.onnx"))
    rounded = deepcopy(network)
    quantize_encoder(rounded)
    words = rounded.get_parameter(WORD_EMBEDDINGS)
    words.data = rounded_rows(words.data, EMBEDDING_LEVELS)
    answered = OnnxRuntime(tmp_path / "int8.onnx").run(batch)
    near = np.abs(answered - TorchRuntime(rounded).run(batch)).mean()
    far = np.abs(answered - TorchRuntime(network).run(batch)).mean()
    assert near < far / 4


def test_the_names_of_the_weights_stay_so_that_a_student_is_exported_as_any_network(network: Classifier) -> None:
    rounded = deepcopy(network)
    quantize_encoder(rounded)
    assert graph_weights(rounded).keys() == graph_weights(network).keys()


def test_weights_are_rounded_in_torch_as_in_the_graph() -> None:
    value = torch.randn(7, 40, generator=torch.Generator().manual_seed(1))
    whole, scale = quantize(value.numpy(), axis=1, levels=WEIGHT_LEVELS)
    np.testing.assert_allclose(rounded_rows(value, WEIGHT_LEVELS).numpy(), whole * scale[:, None], atol=1e-6)


def test_a_row_is_rounded_by_its_own_size_alone() -> None:
    small, large = torch.linspace(-0.01, 0.01, 50), torch.linspace(-50, 50, 50)
    together = rounded_rows(torch.stack([small, large]), 127)
    torch.testing.assert_close(together[0], rounded_rows(small[None], 127)[0])
    assert float((together[0] - small).abs().max()) <= 0.01 / 127 / 2 + 1e-9


def test_all_that_a_gelu_gives_lies_within_the_range_of_its_rounding() -> None:
    value = nn.functional.gelu(torch.linspace(-6, 6, 4001)).unsqueeze(0)
    assert float(value.min()) >= -GELU_LEAST
    for peak in (6.0, 0.5, 0.0):
        row = value.clamp_max(peak)
        step = max(float(row.max()), GELU_LEAST * GELU_LEVELS / 16) / GELU_LEVELS
        assert float((rounded_gelu(row) - row).abs().max()) <= step / 2 + 1e-6


def test_gradients_pass_the_rounding() -> None:
    plain = nn.Linear(8, 4)
    layer = RoundedLinear(plain, after_gelu=False)
    hidden = torch.randn(3, 8, requires_grad=True)
    torch.autograd.backward(layer(hidden).sum())
    assert plain.weight.grad is not None
    assert hidden.grad is not None
    torch.testing.assert_close(plain.weight.grad, hidden.detach().sum(0).expand(4, 8), rtol=0.05, atol=0.05)
    assert float(hidden.grad.abs().min()) > 0


def test_kept_layers_are_those_asked_for_in_order(network: Classifier) -> None:
    kept = keep_layers(deepcopy(network), [1, 3])
    own, whole = graph_weights(kept), graph_weights(network)
    for place, layer in enumerate((1, 3)):
        name = "encoder.encoder.layer.{}.output.dense.weight"
        np.testing.assert_array_equal(own[name.format(place)], whole[name.format(layer)])
    assert name.format(2) not in own
    assert kept.encoder.config.num_hidden_layers == 2
