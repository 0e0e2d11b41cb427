from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import BertConfig, BertModel

from models.export.torch_runtime import TorchRuntime
from models.graph.builder import build_graph
from models.graph.writer import Precision, quantize
from models.networks.encoder import Classifier, graph_weights
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch, Encoding, collate

PAD, WORDS = 1, 200
CLOSE: dict[Precision, float] = {"fp32": 1e-5, "int8": 0.2, "mixed": 0.1, "fp16": 0.02}


@pytest.fixture(scope="module")
def network() -> Classifier:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.3,
    )
    network = Classifier(BertModel(config, add_pooling_layer=False), width=32, labels=3)
    torch.nn.init.normal_(network.head.weight, std=0.2)
    return network.eval()


@pytest.fixture(scope="module")
def tokens() -> list[Encoding]:
    """Texts of 3 to 40 tokens; every other one names a target."""
    rng = np.random.default_rng(4)
    found = []
    for number, length in enumerate(rng.integers(3, 40, 24)):
        types = np.zeros(length, np.int64)
        types[1 : 1 + number % 2] = 1
        found.append(Encoding(rng.integers(5, WORDS, length), types, False, "en"))
    return found


def runtime(network: Classifier, storage: Precision, folder: Path) -> OnnxRuntime:
    path = folder / f"{storage}.onnx"
    onnx.save(build_graph(graph_weights(network), heads=4, epsilon=1e-12, precision=storage), str(path))
    return OnnxRuntime(path)


@pytest.mark.parametrize("storage", CLOSE)
def test_the_graph_answers_as_the_network_does(
    network: Classifier, tokens: list[Encoding], storage: Precision, tmp_path: Path
) -> None:
    batch = collate(tokens, PAD)
    expected = TorchRuntime(network).run(batch)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(runtime(network, storage, tmp_path).run(batch), expected, atol=CLOSE[storage])


@pytest.mark.parametrize("storage", CLOSE)
def test_a_text_is_answered_the_same_alone_and_among_others(
    network: Classifier, tokens: list[Encoding], storage: Precision, tmp_path: Path
) -> None:
    graph = runtime(network, storage, tmp_path)
    together = graph.run(collate(tokens, PAD))
    alone = np.concatenate([graph.run(collate([item], PAD)) for item in tokens])
    np.testing.assert_allclose(together, alone, atol=1e-5 if storage != "fp16" else 2e-3)


def test_the_target_decides_which_tokens_are_read(network: Classifier) -> None:
    ids = np.arange(5, 15)[None, :]
    mask = np.ones_like(ids)
    answers = []
    for place in (1, 8):
        types = np.zeros_like(ids)
        types[0, place] = 1
        answers.append(TorchRuntime(network).run(Batch(ids, mask, types)))
    assert np.abs(answers[0] - answers[1]).max() > 0.05


def test_eight_bits_keep_a_matrix_within_half_a_step_of_each_slice() -> None:
    value = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32) * np.logspace(-3, 3, 7, dtype=np.float32)
    whole, scale = quantize(value, axis=0, levels=127)
    assert whole.dtype == np.int8
    assert (np.abs(whole * scale - value) <= scale / 2 * 1.001).all()


def test_the_int8_graph_is_stored_in_8_bits(network: Classifier, tmp_path: Path) -> None:
    runtime(network, "int8", tmp_path)
    kinds = {
        tensor.name: tensor.data_type
        for tensor in onnx.load(str(tmp_path / "int8.onnx")).graph.initializer
        if len(tensor.dims) == 2 and np.prod(tensor.dims) >= 1024 and "position" not in tensor.name
    }
    assert set(kinds.values()) == {onnx.TensorProto.INT8}
    assert len(kinds) == 1 + 3 * 4
