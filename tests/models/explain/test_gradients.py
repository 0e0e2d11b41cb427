"""Gradients by hand, beside torch's and beside differences."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from transformers import BertConfig, BertModel

from models.bundle import SHIPPED_INTENT, load_bundle
from models.explain.attribution import COMPLETENESS_TOLERANCE, MAX_POINTS, integrated_gradients
from models.explain.explainer import open_explainer
from models.explain.gradients import Gradients
from models.explain.score_functions import IntentConfidences, LabelProbabilities, ReplyScore, ScoreFunction
from models.graph.builder import build_graph, save_graph
from models.graph.convert import convert_graph
from models.graph.names import LOG_STEP
from models.graph.weights import dequantize, read_graph_weights
from models.graph.writer import Precision
from models.networks.encoder import Classifier, graph_weights
from models.networks.quantization import quantize_encoder, record_inputs, set_steps
from models.prediction.calibration import LogitScaling
from models.prediction.intent_head import load_bundle_heads
from models.prediction.reply_ranker import RANKER, load_ranker
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import Encoding, collate
from models.text.tokenizer import Turn
from tests.support.tiny_bundle import graph_for_gpus

pytestmark = pytest.mark.slow

WIDTH, HEADS, LENGTH = 32, 4, 9
STEP = 0.008


@pytest.fixture
def network() -> Classifier:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=200,
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=64,
        initializer_range=0.3,
    )
    encoder = BertModel(config, add_pooling_layer=False)
    encoder.set_attn_implementation("eager")
    return Classifier(encoder, width=WIDTH, labels=3).eval()


def tokens_of(types: list[int]) -> Encoding:
    ids = np.random.default_rng(1).integers(5, 200, len(types))
    return Encoding(ids, np.asarray(types), False, "en")


PLAIN = tokens_of([0] * LENGTH)
NAMED = tokens_of([0, 0, 1, 1, 0, 0, 0, 0, 0])


def gradients_of(network: Classifier, storage: Precision, folder: Path) -> Gradients:
    save_graph(build_graph(graph_weights(network), HEADS, 1e-12, storage), folder / "g.onnx")
    return Gradients(folder / "g.onnx")


def cut_inputs(network: Classifier, folder: Path) -> None:
    """As the graph in the folder cuts what its linear layers read, and with its weights."""
    weights = dequantize(read_graph_weights(folder / "g.onnx").tensors)
    network.load_state_dict(
        {name: torch.from_numpy(value) for name, value in weights.items() if LOG_STEP not in name}, strict=False
    )
    for group, zero in record_inputs(network):
        owner, name = group[0]
        lowest, highest = -zero * STEP, (255 - zero) * STEP
        for owner, name in group:
            getattr(owner, name).register_forward_pre_hook(
                lambda _, given, lowest=lowest, highest=highest: (given[0].clamp(lowest, highest),)
            )


@pytest.mark.parametrize("cut", [False, True], ids=["plain", "cut"])
@pytest.mark.parametrize("tokens", [PLAIN, NAMED], ids=["whole", "entity"])
def test_rows_and_gradients_are_torch_s(network: Classifier, tokens: Encoding, cut: bool, tmp_path: Path) -> None:
    gates = np.random.default_rng(2).uniform(0.05, 1, (5, LENGTH)).astype(np.float32)
    slope = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
    if cut:
        rounded = deepcopy(network)
        quantize_encoder(rounded)
        set_steps(rounded, [STEP] * 12)
        gradients = gradients_of(rounded, "fp32", tmp_path)
        cut_inputs(network, tmp_path)
    else:
        gradients = gradients_of(network, "fp32", tmp_path)
    passed = gradients.run(tokens, gates)

    opened = torch.from_numpy(gates).requires_grad_()
    ids, types = (torch.from_numpy(part).expand(5, -1) for part in (tokens.ids, tokens.token_types))
    openness = opened.log()[:, None, None, :].expand(-1, 1, LENGTH, -1)
    states = network.encoder(input_ids=ids, attention_mask=openness, token_type_ids=types).last_hidden_state
    readers = types * opened if tokens.has_entity else opened
    rows = network.head((readers[:, None, :] @ states)[:, 0] / readers.sum(dim=1, keepdim=True))
    np.testing.assert_allclose(passed.rows, rows.detach().numpy(), atol=1e-4)
    rows.backward(torch.from_numpy(slope))
    assert opened.grad is not None
    np.testing.assert_allclose(passed.backward(slope), opened.grad.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("storage", ["fp32", "mixed", "int8"])
@pytest.mark.parametrize("learned", [False, True], ids=["plain", "steps"])
def test_it_is_the_graph_s_own_network_in_fp32(
    network: Classifier, storage: Precision, learned: bool, tmp_path: Path
) -> None:
    if learned:  # so small that inputs are cut
        quantize_encoder(network)
        set_steps(network, [STEP] * 12)
    gradients = gradients_of(network, storage, tmp_path)
    onnx.save(convert_graph(tmp_path / "g.onnx", "fp32"), str(tmp_path / "plain.onnx"))
    expected = OnnxRuntime(tmp_path / "plain.onnx").run(collate([PLAIN], pad=1))
    # Weights in whole steps were stored in 16 bits by `mixed`, and the other graph puts them into steps again.
    near = 2e-3 if learned and storage == "mixed" else 1e-4
    np.testing.assert_allclose(gradients.run(PLAIN, np.ones((1, LENGTH), np.float32)).rows, expected, atol=near)


def test_a_gate_that_is_shut_takes_its_token_out(network: Classifier, tmp_path: Path) -> None:
    gradients = gradients_of(network, "fp32", tmp_path)
    gates = np.ones((1, LENGTH), np.float32)
    gates[:, 6:] = 1e-9
    shorter = Encoding(PLAIN.ids[:6], PLAIN.token_types[:6], False, "en")
    expected = gradients.run(shorter, np.ones((1, 6), np.float32)).rows
    np.testing.assert_allclose(gradients.run(PLAIN, gates).rows, expected, atol=1e-4)


def test_a_graph_for_gpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no Attention with q_num_heads"):
        Gradients(graph_for_gpus(tmp_path))


def answers() -> list[ScoreFunction]:
    bundle = load_bundle(SHIPPED_INTENT)
    ranker = load_ranker(bundle.path / RANKER)
    placed = ranker.project_replies(np.random.default_rng(5).normal(size=(1, len(ranker.reply))).astype(np.float32))[0]
    return [
        LabelProbabilities(LogitScaling(1.3, 0.0, (0.0, 0.0, 0.0))),
        LabelProbabilities(LogitScaling(0.7, 0.4, (0.1, -0.2, 0.0))),
        IntentConfidences(load_bundle_heads(bundle.path, bundle.encoder_digest)["dstc11"]),
        ReplyScore(ranker, placed),
    ]


@pytest.mark.parametrize("number", range(4))
def test_the_slope_of_an_answer_is_that_of_small_differences(number: int) -> None:
    answer = answers()[number]
    width = 3 if isinstance(answer, LabelProbabilities) else 384
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(4, width)).astype(np.float32)
    labels = answer(rows).shape[1]
    for label in {0, labels - 1}:
        slopes = answer.gradient(rows, label)
        for _ in range(3):
            way = rng.normal(size=rows.shape).astype(np.float32) * np.float32(2e-3)
            change = (answer(rows + way) - answer(rows - way))[:, label] / 2
            np.testing.assert_allclose((slopes * way).sum(axis=1), change, rtol=0.02, atol=2e-6)


def test_a_turn_is_the_sum_of_its_words() -> None:
    bundle = load_bundle(SHIPPED_INTENT)
    explainer = open_explainer(bundle)
    turns = (Turn("customer", "I lost my card"), Turn("agent", "Which one?"), Turn("customer", "the blue one 蓝色"))
    question = explainer.intent_instance(turns, load_bundle_heads(bundle.path, bundle.encoder_digest)["banking77"])
    found = explainer.explain(question, "integrated_gradients").segments
    asked = explainer.attribute(question.with_segments_as_features(), "integrated_gradients")
    assert len(found) == 3
    for passage, expected in zip(found, asked, strict=True):
        assert passage.weight == pytest.approx(sum(word.weight for word in passage.words))
        assert passage.weight == pytest.approx(expected, abs=0.01)


def test_what_parts_say_only_together_is_shared_between_them() -> None:
    def slope(shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of x * y + 3 z."""
        return shares**2 + 3 * shares, np.stack([shares, shares, np.full_like(shares, 3)], axis=1)

    np.testing.assert_allclose(integrated_gradients(slope), [0.5, 0.5, 3], atol=1e-6)


def test_the_way_is_halved_where_weights_are_not_complete_and_not_for_ever() -> None:
    asked: list[float] = []

    def bent(shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Flat up to 0.7, and steep from there on."""
        asked.extend(shares)
        return np.maximum(shares - 0.7, 0), (shares > 0.7)[:, None].astype(float)

    assert integrated_gradients(bent).sum() == pytest.approx(0.3, rel=COMPLETENESS_TOLERANCE)
    near = [share for share in asked if 0.6 < share < 0.8]
    assert len(near) > 0.4 * len(asked)

    def jump(shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        asked.extend(shares)
        return np.where(shares > 0.7, 1.0, 0.0), np.zeros((len(shares), 1))

    asked.clear()
    assert integrated_gradients(jump).sum() == 0
    assert MAX_POINTS < len(asked) < 3 * MAX_POINTS
