"""The network behind a graph computes what the graph computes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from models.bundle import GRAPH, Bundle, load_bundle
from models.graph.builder import build_graph, save_graph
from models.graph.names import LOG_STEP
from models.networks.encoder import Embedder
from models.networks.graph_network import NetworkShape, load_graph_classifier, load_graph_encoder
from models.networks.torch_runtime import TorchRuntime
from models.runtime.cuda import to_fp16
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch
from tests.support.tiny_bundle import (
    HEADS,
    INNER,
    LAYERS,
    PIECES,
    WIDTH,
    graph_for_gpus,
    tiny_bundle,
    tiny_intent_bundle,
    weights,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def batch() -> Batch:
    ids = np.random.default_rng(1).integers(4, len(PIECES), (3, 20))
    return Batch(ids, np.ones_like(ids), np.zeros_like(ids))


def test_the_classifier_of_a_graph_has_the_weights_that_the_graph_was_written_from(tiny: Bundle, batch: Batch) -> None:
    network, shape = load_graph_classifier(tiny.graph)
    assert shape == NetworkShape(LAYERS, WIDTH, INNER, HEADS)
    assert str(shape) == "2 layers of width 32, inner width 64, 4 heads"
    assert network.encoder.config._attn_implementation == "sdpa"  # the fused one, by default of transformers
    for name, value in weights().items():
        np.testing.assert_allclose(network.state_dict()[name].numpy(), value, atol=0.01, err_msg=name)
    np.testing.assert_allclose(TorchRuntime(network).run(batch), OnnxRuntime(to_fp16(tiny.graph)).run(batch), atol=0.02)


def test_inputs_are_clipped_where_a_graph_with_learned_steps_clips_them(tmp_path: Path, batch: Batch) -> None:
    plain = weights()
    linear = [name.removesuffix(".weight") for name in plain if re.search(r"(query|key|value|dense)\.weight", name)]
    steps = {f"{name}.{LOG_STEP}": np.asarray(np.log(0.004), np.float32) for name in linear}
    save_graph(build_graph(plain | steps, HEADS, 1e-12, "int8"), tmp_path / GRAPH)
    network, _ = load_graph_classifier(tmp_path / GRAPH)
    expected = OnnxRuntime(to_fp16(tmp_path / GRAPH)).run(batch)
    np.testing.assert_allclose(TorchRuntime(network).run(batch), expected, atol=0.02)


@pytest.mark.slow
def test_the_encoder_of_an_embedding_model_gives_its_vectors(tmp_path: Path, batch: Batch) -> None:
    bundle = load_bundle(tiny_intent_bundle(tmp_path))
    encoder, shape = load_graph_encoder(bundle.graph, pad_id=1)
    assert shape == NetworkShape(LAYERS, WIDTH, INNER, HEADS)
    assert encoder.config.pad_token_id == 1
    vectors = TorchRuntime(Embedder(encoder)).run(batch)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, OnnxRuntime(to_fp16(bundle.graph)).run(batch), atol=0.02)


def test_an_encoder_is_ready_to_evaluate_and_plain(tiny: Bundle) -> None:
    encoder, _ = load_graph_encoder(tiny.graph, pad_id=1)
    assert not encoder.training
    assert not any(module._forward_pre_hooks for module in encoder.modules())
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_a_graph_for_gpus_cannot_be_read_back(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it is for GPUs"):
        load_graph_classifier(graph_for_gpus(tmp_path))
