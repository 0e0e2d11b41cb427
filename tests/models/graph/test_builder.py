from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.export.torch_runtime import TorchRuntime
from models.graph.builder import build_graph
from models.graph.writer import Precision, quantize
from models.networks.encoder import Classifier, graph_weights
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch, Encoding, collate
from tests.support.tiny_networks import tiny_encoder

PAD_ID, VOCABULARY = 1, 200
TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "int8": 0.2, "mixed": 0.1, "fp16": 0.02}


@pytest.fixture(scope="module")
def network() -> Classifier:
    network = Classifier(tiny_encoder(3, VOCABULARY), width=32, labels=3)
    torch.nn.init.normal_(network.head.weight, std=0.2)
    return network.eval()


@pytest.fixture(scope="module")
def tokens() -> list[Encoding]:
    """Texts of 3 to 40 tokens; every second text names an entity."""
    rng = np.random.default_rng(4)
    texts = []
    for index, length in enumerate(rng.integers(3, 40, 24)):
        types = np.zeros(length, np.int64)
        types[1 : 1 + index % 2] = 1
        texts.append(Encoding(rng.integers(5, VOCABULARY, length), types, False, "en"))
    return texts


def runtime(network: Classifier, precision: Precision, folder: Path) -> OnnxRuntime:
    path = folder / f"{precision}.onnx"
    onnx.save(build_graph(graph_weights(network), heads=4, epsilon=1e-12, precision=precision), str(path))
    return OnnxRuntime(path)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_graph_equals_the_network(
    network: Classifier, tokens: list[Encoding], precision: Precision, tmp_path: Path
) -> None:
    batch = collate(tokens, PAD_ID)
    expected = TorchRuntime(network).run(batch)
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(runtime(network, precision, tmp_path).run(batch), expected, atol=TOLERANCE[precision])


@pytest.mark.parametrize("precision", TOLERANCE)
def test_a_prediction_does_not_depend_on_the_batch(
    network: Classifier, tokens: list[Encoding], precision: Precision, tmp_path: Path
) -> None:
    graph = runtime(network, precision, tmp_path)
    together = graph.run(collate(tokens, PAD_ID))
    alone = np.concatenate([graph.run(collate([item], PAD_ID)) for item in tokens])
    np.testing.assert_allclose(together, alone, atol=1e-5 if precision != "fp16" else 2e-3)


def test_the_entity_decides_which_tokens_are_pooled(network: Classifier) -> None:
    ids = np.arange(5, 15)[None, :]
    mask = np.ones_like(ids)
    logits = []
    for position in (1, 8):
        types = np.zeros_like(ids)
        types[0, position] = 1
        logits.append(TorchRuntime(network).run(Batch(ids, mask, types)))
    assert np.abs(logits[0] - logits[1]).max() > 0.05


def test_quantization_to_8_bits_is_off_by_at_most_half_a_step() -> None:
    value = np.random.default_rng(0).normal(size=(40, 7)).astype(np.float32) * np.logspace(-3, 3, 7, dtype=np.float32)
    quantized, scale = quantize(value, axis=0, levels=127)
    assert quantized.dtype == np.int8
    assert (np.abs(quantized * scale - value) <= scale / 2 * 1.001).all()


def test_the_int8_graph_is_stored_in_8_bits(network: Classifier, tmp_path: Path) -> None:
    runtime(network, "int8", tmp_path)
    kinds = {
        tensor.name: tensor.data_type
        for tensor in onnx.load(str(tmp_path / "int8.onnx")).graph.initializer
        if len(tensor.dims) == 2 and np.prod(tensor.dims) >= 1024 and "position" not in tensor.name
    }
    assert set(kinds.values()) == {onnx.TensorProto.INT8}
    assert len(kinds) == 1 + 3 * 4
