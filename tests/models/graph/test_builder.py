from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.graph.builder import build_graph
from models.graph.names import HEAD
from models.graph.weights import read_graph_weights
from models.graph.writer import Precision, quantize
from models.networks.encoder import Classifier, Embedder, graph_weights
from models.networks.torch_runtime import TorchRuntime
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch, Encoding, collate
from tests.support.older_graph import older_graph
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


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_vectors_are_what_the_network_pools(
    network: Classifier, tokens: list[Encoding], precision: Precision, tmp_path: Path
) -> None:
    batch = collate(tokens, PAD_ID)
    expected = TorchRuntime(Embedder(network.encoder)).run(batch)
    assert np.ptp(expected) > 0.5
    _, vectors = runtime(network, precision, tmp_path).run_with_vectors(batch)
    assert vectors.shape == (len(tokens), 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=2 * TOLERANCE[precision])


@pytest.mark.parametrize("precision", TOLERANCE)
def test_the_head_maps_the_vectors_to_the_logits(
    network: Classifier, tokens: list[Encoding], precision: Precision, tmp_path: Path
) -> None:
    logits, vectors = runtime(network, precision, tmp_path).run_with_vectors(collate(tokens, PAD_ID))
    weights = graph_weights(network)
    np.testing.assert_allclose(vectors @ weights[f"{HEAD}.weight"].T + weights[f"{HEAD}.bias"], logits, atol=1e-4)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_logits_are_the_same_with_the_vectors_and_without_bit_for_bit(
    network: Classifier, tokens: list[Encoding], precision: Precision, tmp_path: Path
) -> None:
    graph = runtime(network, precision, tmp_path)
    older = OnnxRuntime(older_graph(onnx.load(str(tmp_path / f"{precision}.onnx"))).SerializeToString())
    for batch in (collate(tokens, PAD_ID), collate(tokens[:1], PAD_ID)):
        expected = older.run(batch)
        np.testing.assert_array_equal(graph.run(batch), expected)
        np.testing.assert_array_equal(graph.run_with_vectors(batch)[0], expected)


@pytest.mark.parametrize("precision", TOLERANCE)
def test_vectors_do_not_depend_on_the_batch(
    network: Classifier, tokens: list[Encoding], precision: Precision, tmp_path: Path
) -> None:
    graph = runtime(network, precision, tmp_path)
    _, together = graph.run_with_vectors(collate(tokens, PAD_ID))
    alone = np.concatenate([graph.run_with_vectors(collate([item], PAD_ID))[1] for item in tokens])
    np.testing.assert_allclose(together, alone, atol=1e-5 if precision != "fp16" else 2e-3)


def test_the_rows_of_an_encoder_are_its_vectors(network: Classifier, tokens: list[Encoding], tmp_path: Path) -> None:
    weights = {name: value for name, value in graph_weights(network).items() if not name.startswith(HEAD)}
    graph = OnnxRuntime(build_graph(weights, heads=4, epsilon=1e-12, precision="int8").SerializeToString())
    rows, vectors = graph.run_with_vectors(collate(tokens, PAD_ID))
    np.testing.assert_array_equal(rows, vectors)
    classifier = runtime(network, "int8", tmp_path)
    np.testing.assert_array_equal(vectors, classifier.run_with_vectors(collate(tokens, PAD_ID))[1])


@pytest.mark.parametrize("precision", ["fp32", "mixed", "int8"])
def test_a_graph_of_an_older_export_stores_the_same_weights(
    network: Classifier, precision: Precision, tmp_path: Path
) -> None:
    runtime(network, precision, tmp_path)
    path, older_path = tmp_path / f"{precision}.onnx", tmp_path / "older.onnx"
    onnx.save(older_graph(onnx.load(str(path))), str(older_path))
    stored, older = read_graph_weights(path), read_graph_weights(older_path)
    assert (stored.heads, stored.epsilon, set(stored.tensors)) == (older.heads, older.epsilon, set(older.tensors))
    for name, value in stored.tensors.items():
        np.testing.assert_array_equal(value, older.tensors[name])


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
