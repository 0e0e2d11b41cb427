"""Heads masked in the graph that serves, beside the same taken out of its maps by hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models.bundle import SHIPPED, Bundle, load_bundle
from models.evaluation.head_ablation import AblatedRuntime, Texts, ablate_cumulatively, ablate_each_head
from models.explain.explainer import Explainer
from models.prediction.calibration import LogitScaling, probabilities
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import collate
from models.text.tokenizer import Tokenizer
from tests.support.tiny_bundle import HEADS, LAYERS, tiny_bundle

EVERY = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))


def texts_of(bundle: Bundle, labels: list[int]) -> Texts:
    tokenizer = Tokenizer.from_bundle(bundle)
    plain = partial(probabilities, scaling=LogitScaling(1.0, 0.0, (0.0, 0.0, 0.0)))
    tokens = tuple(tokenizer.encode(text) for text in ("ab cd", "股票上涨", "z" * 30))
    return Texts(tokens, (plain,) * 3, np.asarray(labels), tokenizer.pad_id)


@pytest.mark.parametrize("path", [None, SHIPPED])
def test_without_masks_it_is_the_graph_that_serves(bundle: Bundle, path: Path | None) -> None:
    own = load_bundle(path) if path else bundle
    tokenizer = Tokenizer.from_bundle(own)
    batch = collate([tokenizer.encode("shares fall")], tokenizer.pad_id)
    np.testing.assert_array_equal(AblatedRuntime(own.graph, ()).run(batch), OnnxRuntime(own.graph).run(batch))


@pytest.mark.parametrize("path", [None, SHIPPED])
def test_a_masked_head_gives_nothing_whatever_it_looks_at(bundle: Bundle, path: Path | None) -> None:
    own = load_bundle(path) if path else bundle
    explainer = Explainer(own, Tokenizer.from_bundle(own), AblatedRuntime(own.graph, [(1, 2)]))
    whole = Explainer(own, Tokenizer.from_bundle(own), OnnxRuntime(own.graph)).text_instance("shares fall")
    assert explainer.text_instance("shares fall").scores != whole.scores
    graph = own.graph.read_bytes()
    again = OnnxRuntime(own.graph).run(collate([whole.tokens], whole.pad))
    np.testing.assert_array_equal(again[0], whole.row)
    assert own.graph.read_bytes() == graph


def test_with_all_heads_masked_no_token_knows_of_another(bundle: Bundle) -> None:
    """Each token adds to the answer what it is at its place: what two texts have in common can be exchanged."""
    tokenizer = Tokenizer.from_bundle(bundle)
    batch = collate([tokenizer.encode(text) for text in ("ab", "cd", "ad", "cb")], tokenizer.pad_id)
    rows = AblatedRuntime(bundle.graph, EVERY).run(batch)
    np.testing.assert_allclose(rows[0] + rows[1], rows[2] + rows[3], atol=1e-4)
    rows = AblatedRuntime(bundle.graph, EVERY[1:]).run(batch)
    assert np.abs(rows[0] + rows[1] - rows[2] - rows[3]).max() > 1e-3


def test_each_head_and_more_and_more_of_them_are_measured(bundle: Bundle) -> None:
    whole, *single = ablate_each_head(bundle.graph, texts_of(bundle, [0, 1, 2]), EVERY)
    assert (whole.heads, whole.changed, whole.score_change) == ((), 0.0, 0.0)
    assert [one.heads for one in single] == [(place,) for place in EVERY]
    assert all(one.score_change > 0 for one in single)
    cumulative = list(ablate_cumulatively(bundle.graph, texts_of(bundle, [0, 1, 2]), EVERY))
    assert [len(one.heads) for one in cumulative] == list(range(1, len(EVERY) + 1))
    assert cumulative[0].score_change == single[0].score_change


def test_accuracy_is_that_of_texts_with_a_label(bundle: Bundle) -> None:
    texts = texts_of(bundle, [-1, -1, -1])
    (whole,) = ablate_each_head(bundle.graph, texts, ())
    assert whole.accuracy is None
    right = texts.answers(OnnxRuntime(bundle.graph)).argmax(axis=1)
    for labels, expected in (([int(right[0]), -1, -1], 1.0), ([int(right[0]), -1, int(right[2] + 1) % 3], 0.5)):
        (whole,) = ablate_each_head(bundle.graph, texts_of(bundle, labels), ())
        assert whole.accuracy == expected
