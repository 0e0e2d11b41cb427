"""Gradients compared with those of torch and with finite differences."""

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
from models.networks.quantization import quantize_encoder, quantized_inputs, set_steps
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
WITH_ENTITY = tokens_of([0, 0, 1, 1, 0, 0, 0, 0, 0])


def gradients_of(network: Classifier, storage: Precision, folder: Path) -> Gradients:
    save_graph(build_graph(graph_weights(network), HEADS, 1e-12, storage), folder / "g.onnx")
    return Gradients(folder / "g.onnx")


def clip_inputs(network: Classifier, folder: Path) -> None:
    """Clip the inputs of linear layers as the graph in the folder does, and load its weights."""
    weights = dequantize(read_graph_weights(folder / "g.onnx").tensors)
    network.load_state_dict(
        {name: torch.from_numpy(value) for name, value in weights.items() if LOG_STEP not in name}, strict=False
    )
    for group, zero in quantized_inputs(network):
        owner, name = group[0]
        lowest, highest = -zero * STEP, (255 - zero) * STEP
        for owner, name in group:
            getattr(owner, name).register_forward_pre_hook(
                lambda _, inputs, lowest=lowest, highest=highest: (inputs[0].clamp(lowest, highest),)
            )


@pytest.mark.parametrize("clipped", [False, True], ids=["plain", "clipped"])
@pytest.mark.parametrize("tokens", [PLAIN, WITH_ENTITY], ids=["text", "entity"])
def test_rows_and_gradients_equal_those_of_torch(
    network: Classifier, tokens: Encoding, clipped: bool, tmp_path: Path
) -> None:
    gates = np.random.default_rng(2).uniform(0.05, 1, (5, LENGTH)).astype(np.float32)
    gradient = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)
    if clipped:
        rounded = deepcopy(network)
        quantize_encoder(rounded)
        set_steps(rounded, [STEP] * 12)
        gradients = gradients_of(rounded, "fp32", tmp_path)
        clip_inputs(network, tmp_path)
    else:
        gradients = gradients_of(network, "fp32", tmp_path)
    forward = gradients.run(tokens, gates)

    gate_tensor = torch.from_numpy(gates).requires_grad_()
    ids, types = (torch.from_numpy(array).expand(5, -1) for array in (tokens.ids, tokens.token_types))
    log_gates = gate_tensor.log()[:, None, None, :].expand(-1, 1, LENGTH, -1)
    states = network.encoder(input_ids=ids, attention_mask=log_gates, token_type_ids=types).last_hidden_state
    pooling = types * gate_tensor if tokens.has_entity else gate_tensor
    rows = network.head((pooling[:, None, :] @ states)[:, 0] / pooling.sum(dim=1, keepdim=True))
    np.testing.assert_allclose(forward.rows, rows.detach().numpy(), atol=1e-4)
    rows.backward(torch.from_numpy(gradient))
    assert gate_tensor.grad is not None
    np.testing.assert_allclose(forward.backward(gradient), gate_tensor.grad.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("storage", ["fp32", "mixed", "int8"])
@pytest.mark.parametrize("learned", [False, True], ids=["plain", "steps"])
def test_rows_equal_those_of_the_graph_converted_to_fp32(
    network: Classifier, storage: Precision, learned: bool, tmp_path: Path
) -> None:
    if learned:  # small enough that inputs are clipped
        quantize_encoder(network)
        set_steps(network, [STEP] * 12)
    gradients = gradients_of(network, storage, tmp_path)
    onnx.save(convert_graph(tmp_path / "g.onnx", "fp32"), str(tmp_path / "plain.onnx"))
    expected = OnnxRuntime(tmp_path / "plain.onnx").run(collate([PLAIN], pad_id=1))
    # `mixed` stores weights in whole steps in 16 bits, and the converted graph rounds them to steps again.
    tolerance = 2e-3 if learned and storage == "mixed" else 1e-4
    np.testing.assert_allclose(gradients.run(PLAIN, np.ones((1, LENGTH), np.float32)).rows, expected, atol=tolerance)


def test_a_closed_gate_removes_its_token(network: Classifier, tmp_path: Path) -> None:
    gradients = gradients_of(network, "fp32", tmp_path)
    gates = np.ones((1, LENGTH), np.float32)
    gates[:, 6:] = 1e-9
    shorter = Encoding(PLAIN.ids[:6], PLAIN.token_types[:6], False, "en")
    expected = gradients.run(shorter, np.ones((1, 6), np.float32)).rows
    np.testing.assert_allclose(gradients.run(PLAIN, gates).rows, expected, atol=1e-4)


def test_a_graph_for_gpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no Attention with q_num_heads"):
        Gradients(graph_for_gpus(tmp_path))


def score_functions() -> list[ScoreFunction]:
    bundle = load_bundle(SHIPPED_INTENT)
    ranker = load_ranker(bundle.path / RANKER)
    projected = ranker.project_replies(np.random.default_rng(5).normal(size=(1, len(ranker.reply))).astype(np.float32))[
        0
    ]
    return [
        LabelProbabilities(LogitScaling(1.3, 0.0, (0.0, 0.0, 0.0))),
        LabelProbabilities(LogitScaling(0.7, 0.4, (0.1, -0.2, 0.0))),
        IntentConfidences(load_bundle_heads(bundle.path, bundle.encoder_digest)["dstc11"]),
        ReplyScore(ranker, projected),
    ]


@pytest.mark.parametrize("index", range(4))
def test_gradients_of_score_functions_equal_finite_differences(index: int) -> None:
    score_function = score_functions()[index]
    width = 3 if isinstance(score_function, LabelProbabilities) else 384
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(4, width)).astype(np.float32)
    labels = score_function(rows).shape[1]
    for label in {0, labels - 1}:
        gradients = score_function.gradient(rows, label)
        for _ in range(3):
            step = rng.normal(size=rows.shape).astype(np.float32) * np.float32(2e-3)
            change = (score_function(rows + step) - score_function(rows - step))[:, label] / 2
            np.testing.assert_allclose((gradients * step).sum(axis=1), change, rtol=0.02, atol=2e-6)


def test_the_weight_of_a_turn_is_the_sum_of_its_words() -> None:
    bundle = load_bundle(SHIPPED_INTENT)
    explainer = open_explainer(bundle)
    turns = (Turn("customer", "I lost my card"), Turn("agent", "Which one?"), Turn("customer", "the blue one 蓝色"))
    instance = explainer.intent_instance(turns, load_bundle_heads(bundle.path, bundle.encoder_digest)["banking77"])
    segments = explainer.explain(instance, "integrated_gradients").segments
    by_turn = explainer.attribute(instance.with_segments_as_features(), "integrated_gradients")
    assert len(segments) == 3
    for segment, expected in zip(segments, by_turn, strict=True):
        assert segment.weight == pytest.approx(sum(word.weight for word in segment.words))
        assert segment.weight == pytest.approx(expected, abs=0.01)


def test_features_share_an_effect_that_needs_them_together() -> None:
    def gradient(shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return x * y + 3 z and its gradient."""
        return shares**2 + 3 * shares, np.stack([shares, shares, np.full_like(shares, 3)], axis=1)

    np.testing.assert_allclose(integrated_gradients(gradient), [0.5, 0.5, 3], atol=1e-6)


def test_segments_are_halved_until_weights_are_complete_or_the_limit_is_reached() -> None:
    points: list[float] = []

    def bent(shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return a score that is flat up to 0.7 and steep from there on, and its gradient."""
        points.extend(shares)
        return np.maximum(shares - 0.7, 0), (shares > 0.7)[:, None].astype(float)

    assert integrated_gradients(bent).sum() == pytest.approx(0.3, rel=COMPLETENESS_TOLERANCE)
    near = [share for share in points if 0.6 < share < 0.8]
    assert len(near) > 0.4 * len(points)

    def jump(shares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        points.extend(shares)
        return np.where(shares > 0.7, 1.0, 0.0), np.zeros((len(shares), 1))

    points.clear()
    assert integrated_gradients(jump).sum() == 0
    assert MAX_POINTS < len(points) < 3 * MAX_POINTS
