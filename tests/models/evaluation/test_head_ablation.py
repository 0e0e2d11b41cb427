"""Ablation of heads in the served graph."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models.bundle import SHIPPED, Bundle, load_bundle
from models.evaluation.head_ablation import AblatedRuntime, AblationTexts, ablate_cumulatively, ablate_each_head
from models.explain.explainer import Explainer
from models.prediction.calibration import LogitScaling, probabilities
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import collate
from models.text.tokenizer import Tokenizer
from tests.support.tiny_bundle import HEADS, LAYERS, tiny_bundle

ALL_HEADS = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))


def ablation_texts(bundle: Bundle, labels: list[int]) -> AblationTexts:
    tokenizer = Tokenizer.from_bundle(bundle)
    probabilities_of = partial(probabilities, scaling=LogitScaling(1.0, 0.0, (0.0, 0.0, 0.0)))
    tokens = tuple(tokenizer.encode(text) for text in ("ab cd", "股票上涨", "z" * 30))
    return AblationTexts(tokens, (probabilities_of,) * 3, np.asarray(labels), tokenizer.pad_id)


@pytest.mark.parametrize("path", [None, SHIPPED])
def test_no_ablation_equals_the_served_graph(bundle: Bundle, path: Path | None) -> None:
    tested = load_bundle(path) if path else bundle
    tokenizer = Tokenizer.from_bundle(tested)
    batch = collate([tokenizer.encode("shares fall")], tokenizer.pad_id)
    np.testing.assert_array_equal(AblatedRuntime(tested.graph, ()).run(batch), OnnxRuntime(tested.graph).run(batch))


@pytest.mark.parametrize("path", [None, SHIPPED])
def test_ablation_changes_the_scores_and_leaves_the_file_alone(bundle: Bundle, path: Path | None) -> None:
    tested = load_bundle(path) if path else bundle
    explainer = Explainer(tested, Tokenizer.from_bundle(tested), AblatedRuntime(tested.graph, [(1, 2)]))
    full = Explainer(tested, Tokenizer.from_bundle(tested), OnnxRuntime(tested.graph)).text_instance("shares fall")
    assert explainer.text_instance("shares fall").scores != full.scores
    graph = tested.graph.read_bytes()
    again = OnnxRuntime(tested.graph).run(collate([full.tokens], full.pad))
    np.testing.assert_array_equal(again[0], full.row)
    assert tested.graph.read_bytes() == graph


def test_without_heads_tokens_contribute_independently(bundle: Bundle) -> None:
    """Each token adds a term that depends only on itself and its position, so tokens of two texts can be swapped."""
    tokenizer = Tokenizer.from_bundle(bundle)
    batch = collate([tokenizer.encode(text) for text in ("ab", "cd", "ad", "cb")], tokenizer.pad_id)
    rows = AblatedRuntime(bundle.graph, ALL_HEADS).run(batch)
    np.testing.assert_allclose(rows[0] + rows[1], rows[2] + rows[3], atol=1e-4)
    rows = AblatedRuntime(bundle.graph, ALL_HEADS[1:]).run(batch)
    assert np.abs(rows[0] + rows[1] - rows[2] - rows[3]).max() > 1e-3


def test_heads_are_removed_each_alone_and_cumulatively(bundle: Bundle) -> None:
    full, *single = ablate_each_head(bundle.graph, ablation_texts(bundle, [0, 1, 2]), ALL_HEADS)
    assert (full.heads, full.changed, full.score_change) == ((), 0.0, 0.0)
    assert [result.heads for result in single] == [(head,) for head in ALL_HEADS]
    assert all(result.score_change > 0 for result in single)
    cumulative = list(ablate_cumulatively(bundle.graph, ablation_texts(bundle, [0, 1, 2]), ALL_HEADS))
    assert [len(result.heads) for result in cumulative] == list(range(1, len(ALL_HEADS) + 1))
    assert cumulative[0].score_change == single[0].score_change


def test_accuracy_counts_only_labelled_texts(bundle: Bundle) -> None:
    texts = ablation_texts(bundle, [-1, -1, -1])
    (full,) = ablate_each_head(bundle.graph, texts, ())
    assert full.accuracy is None
    answers = texts.scores(OnnxRuntime(bundle.graph)).argmax(axis=1)
    for labels, expected in (([int(answers[0]), -1, -1], 1.0), ([int(answers[0]), -1, int(answers[2] + 1) % 3], 0.5)):
        (full,) = ablate_each_head(bundle.graph, ablation_texts(bundle, labels), ())
        assert full.accuracy == expected
