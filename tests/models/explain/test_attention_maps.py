from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from models.bundle import EMBEDDINGS, GRAPH, SHIPPED, load_bundle
from models.explain.attention_maps import AttentionMapRuntime, AttentionMaps
from models.graph.builder import build_graph
from models.graph.names import LOGITS
from models.graph.protobuf import encode_outputs, read_fields
from models.networks.encoder import Classifier, graph_weights
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Batch, Encoding, collate
from models.text.tokenizer import Tokenizer
from tests.support.older_graph import older_graph
from tests.support.tiny_bundle import HEADS, LAYERS, graph_for_gpus, tiny_bundle
from tests.support.tiny_networks import tiny_encoder

pytestmark = pytest.mark.slow

TEXTS = ("Shares of Acme plunge after profit warning", "股价涨停，大涨50%", "up", "Profit warning. " * 90)


@pytest.fixture(scope="module")
def batch() -> Batch:
    tokenizer = Tokenizer(SHIPPED / "tokenizer.json", 512)
    return collate([tokenizer.encode(text) for text in TEXTS], tokenizer.pad_id)


@pytest.fixture(scope="module")
def maps(batch: Batch) -> AttentionMaps:
    return AttentionMapRuntime(load_bundle(SHIPPED).graph).run(batch)


def test_logits_equal_those_of_the_served_graph_bit_for_bit(batch: Batch, maps: AttentionMaps) -> None:
    np.testing.assert_array_equal(maps.logits, OnnxRuntime(SHIPPED / GRAPH).run(batch))


def test_attention_of_each_token_sums_to_one_over_its_text(batch: Batch, maps: AttentionMaps) -> None:
    assert maps.layers == 8
    for layer in range(maps.layers):
        attention = maps.attention(layer)
        assert attention.shape == (len(TEXTS), 12, *[batch.ids.shape[1]] * 2)
        np.testing.assert_allclose(attention.sum(axis=-1), 1, atol=1e-3)
        assert (attention >= 0).all()
        for row, length in enumerate(batch.mask.sum(axis=1)):
            assert (attention[row, :, :, length:] == 0).all()


def test_maps_of_a_text_do_not_depend_on_its_batch(batch: Batch, maps: AttentionMaps) -> None:
    length = int(batch.mask[0].sum())
    alone = AttentionMapRuntime(SHIPPED / GRAPH).run(
        Batch(*(array[:1, :length] for array in (batch.ids, batch.mask, batch.token_types)))
    )
    selected = maps.select(0)
    np.testing.assert_allclose(selected.attention(7), alone.attention(7), atol=1e-4)
    np.testing.assert_allclose(selected.value_norms(7), alone.value_norms(7), rtol=1e-3)


@pytest.fixture(scope="module")
def network() -> Classifier:
    encoder = tiny_encoder(3, 200)
    encoder.set_attn_implementation("eager")
    return Classifier(encoder, width=32, labels=3).eval()


@pytest.fixture(scope="module")
def random_batch() -> Batch:
    return random_texts(np.random.default_rng(4), (3, 17, 40))


def random_texts(rng: np.random.Generator, lengths: Iterable[int]) -> Batch:
    return collate([Encoding(rng.integers(5, 200, n), np.zeros(n, np.int64), False, "en") for n in lengths], pad_id=1)


def maps_in(network: Classifier, batch: Batch, folder: Path) -> AttentionMaps:
    path = folder / "fp32.onnx"
    onnx.save(build_graph(graph_weights(network), heads=4, epsilon=1e-12, precision="fp32"), str(path))
    return AttentionMapRuntime(path).run(batch)


def test_maps_of_two_hundred_texts_equal_those_of_torch(network: Classifier, tmp_path: Path) -> None:
    path = tmp_path / "fp32.onnx"
    onnx.save(build_graph(graph_weights(network), heads=4, epsilon=1e-12, precision="fp32"), str(path))
    runtime, rng = AttentionMapRuntime(path), np.random.default_rng(4)
    for _ in range(20):
        batch = random_texts(rng, rng.integers(1, 41, 10))
        maps, (ids, mask, types) = runtime.run(batch), map(torch.from_numpy, (batch.ids, batch.mask, batch.token_types))
        with torch.no_grad():
            expected_maps = network.encoder(ids, mask, types, output_attentions=True).attentions
        assert maps.layers == len(expected_maps) == 3
        for layer, expected in enumerate(expected_maps):
            for row, length in enumerate(batch.mask.sum(axis=1)):
                attention = maps.attention(layer)[row, :, :length]
                np.testing.assert_allclose(attention, expected[row, :, :length].numpy(), atol=1e-4)


def test_heads_together_add_to_the_state_what_torch_adds(
    network: Classifier, random_batch: Batch, tmp_path: Path
) -> None:
    maps = maps_in(network, random_batch, tmp_path)
    layer = network.encoder.encoder.layer[0].attention  # type: ignore[union-attr, index]
    added: list[torch.Tensor] = []
    hook = layer.output.dense.register_forward_hook(lambda _, __, out: added.append(out - layer.output.dense.bias))
    with torch.no_grad():
        network(*map(torch.from_numpy, (random_batch.ids, random_batch.mask, random_batch.token_types)))
    hook.remove()
    contributions = np.einsum("bhij,bhjp,hpw->biw", maps.attention(0), maps.values[0], maps.output_projections[0])
    np.testing.assert_allclose(contributions, added[0].numpy(), atol=1e-4)


@pytest.mark.parametrize("storage", ["int8", "mixed", "fp32"])
def test_output_projections_equal_the_weights_in_every_precision(
    network: Classifier, random_batch: Batch, storage: str, tmp_path: Path
) -> None:
    path = tmp_path / "graph.onnx"
    onnx.save(build_graph(graph_weights(network), heads=4, epsilon=1e-12, precision=storage), str(path))  # type: ignore[arg-type]
    projections = AttentionMapRuntime(path).run(random_batch).output_projections
    expected = graph_weights(network)["encoder.encoder.layer.2.attention.output.dense.weight"].T
    np.testing.assert_allclose(projections[2].reshape(32, 32), expected, atol=0.02 if storage == "int8" else 1e-3)


def test_maps_work_with_embeddings_in_a_separate_file(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path)
    assert (path / EMBEDDINGS).exists()
    ids = np.arange(4, 12)[None, :]
    maps = AttentionMapRuntime(path / GRAPH).run(Batch(ids, np.ones_like(ids), np.zeros_like(ids)))
    assert maps.queries.shape == (LAYERS, 1, HEADS, 8, 8)


def test_maps_are_the_same_for_a_graph_of_an_older_export(
    network: Classifier, random_batch: Batch, tmp_path: Path
) -> None:
    graph, path = build_graph(graph_weights(network), heads=4, epsilon=1e-12, precision="fp32"), tmp_path / "fp32.onnx"
    maps = maps_in(network, random_batch, tmp_path)
    onnx.save(older_graph(graph), str(path))
    older = AttentionMapRuntime(path).run(random_batch)
    np.testing.assert_array_equal(older.logits, maps.logits)
    assert maps.logits.shape == (3, 3)
    for layer in range(maps.layers):
        np.testing.assert_array_equal(older.attention(layer), maps.attention(layer))


def test_a_graph_for_gpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no attention operator to compute maps from"):
        AttentionMapRuntime(graph_for_gpus(tmp_path))


def test_onnx_reads_appended_outputs() -> None:
    names = ["a" * 200, "split_19_1"]
    model = onnx.load_from_string((SHIPPED / GRAPH).read_bytes() + encode_outputs(names))
    outputs = [output.name for output in model.graph.output]
    assert (outputs[0], outputs[-2:]) == (LOGITS, names)


def test_bytes_that_are_no_protobuf_message_are_refused() -> None:
    with pytest.raises(ValueError, match="no protobuf message"):
        list(read_fields(memoryview(b"\x0b\x01")))
