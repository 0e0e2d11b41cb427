"""Heads masked in the graph that serves, beside the same taken out of its maps by hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from models.bundle import SHIPPED, Bundle, load
from models.evaluation.head_ablation import MaskedRuntime, Texts, each_head, together
from models.explain.explainer import Explainer
from models.prediction.calibration import Scaling, probabilities
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import collate
from models.text.tokenizer import Tokenizer
from tests.support.tiny_bundle import HEADS, LAYERS, tiny_bundle

EVERY = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load(tiny_bundle(tmp_path_factory.mktemp("bundle")))


def texts_of(bundle: Bundle, labels: list[int]) -> Texts:
    tokenizer = Tokenizer.from_bundle(bundle)
    plain = partial(probabilities, scaling=Scaling(1.0, 0.0, (0.0, 0.0, 0.0)))
    tokens = tuple(tokenizer.encode(text) for text in ("ab cd", "股票上涨", "z" * 30))
    return Texts(tokens, (plain,) * 3, np.asarray(labels), tokenizer.pad)


@pytest.mark.parametrize("path", [None, SHIPPED])
def test_without_masks_it_is_the_graph_that_serves(bundle: Bundle, path: Path | None) -> None:
    own = load(path) if path else bundle
    tokenizer = Tokenizer.from_bundle(own)
    batch = collate([tokenizer.encode("shares fall")], tokenizer.pad)
    np.testing.assert_array_equal(MaskedRuntime(own.graph, ()).run(batch), OnnxRuntime(own.graph).run(batch))


@pytest.mark.parametrize("path", [None, SHIPPED])
def test_a_masked_head_gives_nothing_whatever_it_looks_at(bundle: Bundle, path: Path | None) -> None:
    own = load(path) if path else bundle
    explainer = Explainer(own, Tokenizer.from_bundle(own), MaskedRuntime(own.graph, [(1, 2)]))
    whole = Explainer(own, Tokenizer.from_bundle(own), OnnxRuntime(own.graph)).text("shares fall")
    assert explainer.text("shares fall").scores != whole.scores
    graph = own.graph.read_bytes()
    again = OnnxRuntime(own.graph).run(collate([whole.tokens], whole.pad))
    np.testing.assert_array_equal(again[0], whole.row)
    assert own.graph.read_bytes() == graph


def test_with_all_heads_masked_no_token_knows_of_another(bundle: Bundle) -> None:
    """Each token adds to the answer what it is at its place: what two texts have in common can be exchanged."""
    tokenizer = Tokenizer.from_bundle(bundle)
    batch = collate([tokenizer.encode(text) for text in ("ab", "cd", "ad", "cb")], tokenizer.pad)
    rows = MaskedRuntime(bundle.graph, EVERY).run(batch)
    np.testing.assert_allclose(rows[0] + rows[1], rows[2] + rows[3], atol=1e-4)
    rows = MaskedRuntime(bundle.graph, EVERY[1:]).run(batch)
    assert np.abs(rows[0] + rows[1] - rows[2] - rows[3]).max() > 1e-3


def test_each_head_and_more_and_more_of_them_are_measured(bundle: Bundle) -> None:
    whole, *single = each_head(bundle.graph, texts_of(bundle, [0, 1, 2]), EVERY)
    assert (whole.heads, whole.changed, whole.moved) == ((), 0.0, 0.0)
    assert [one.heads for one in single] == [(place,) for place in EVERY]
    assert all(one.moved > 0 for one in single)
    cumulative = list(together(bundle.graph, texts_of(bundle, [0, 1, 2]), EVERY))
    assert [len(one.heads) for one in cumulative] == list(range(1, len(EVERY) + 1))
    assert cumulative[0].moved == single[0].moved


def test_accuracy_is_that_of_texts_with_a_label(bundle: Bundle) -> None:
    texts = texts_of(bundle, [-1, -1, -1])
    (whole,) = each_head(bundle.graph, texts, ())
    assert whole.accuracy is None
    right = texts.answers(OnnxRuntime(bundle.graph)).argmax(axis=1)
    for labels, expected in (([int(right[0]), -1, -1], 1.0), ([int(right[0]), -1, int(right[2] + 1) % 3], 0.5)):
        (whole,) = each_head(bundle.graph, texts_of(bundle, labels), ())
        assert whole.accuracy == expected
