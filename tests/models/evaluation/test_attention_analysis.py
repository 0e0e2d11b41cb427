from __future__ import annotations

import numpy as np
import pytest

from models.bundle import Bundle, load_bundle
from models.evaluation.attention_analysis import AttentionAnalysis, HeadRole, analyze, head_measures
from models.evaluation.influential_words import LabelledInstance, kind_of
from models.explain.explainer import open_explainer
from tests.support.tiny_bundle import HEADS, LAYERS, tiny_bundle

ROWS = [
    (f"{word} {word} 利润 {number}", label)
    for number in range(6)
    for word, label in (("up", "positive"), ("down", "negative"), ("flat", "neutral"), ("up", None))
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def analysis(bundle: Bundle) -> AttentionAnalysis:
    explainer = open_explainer(bundle)
    rows = [LabelledInstance(explainer.text_instance(text), label) for text, label in ROWS]
    return analyze(bundle.graph, explainer, rows, lambda _: None)


def test_texts_are_counted(analysis: AttentionAnalysis) -> None:
    assert (analysis.texts, analysis.labelled) == (24, 18)
    assert 0 < analysis.wrong < 18
    assert all(mistake.row.label not in (None, mistake.answer) for mistake in analysis.mistakes)
    confidences = [mistake.explanation.scores[mistake.answer] for mistake in analysis.mistakes]
    assert confidences == sorted(confidences, reverse=True)


def test_influential_words_have_the_means_of_their_weights(bundle: Bundle, analysis: AttentionAnalysis) -> None:
    explainer = open_explainer(bundle)
    weights = []
    label = next(
        label
        for label, words in analysis.influential_words.items()
        if any(influential.word == "up" for influential in words)
    )
    for text, _ in ROWS:
        explanation = explainer.explain(explainer.text_instance(text))
        if explanation.target == label and text.startswith("up"):
            weights.append(sum(word.weight for word in explanation.text.words[:2]))
    (up,) = [influential for influential in analysis.influential_words[label] if influential.word == "up"]
    assert up.texts == len(weights)
    assert up.weight == pytest.approx(np.mean(weights), abs=1e-5)


def test_every_head_is_measured_and_masked(analysis: AttentionAnalysis) -> None:
    heads = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    assert [role.index for role in analysis.roles] == heads
    assert [result.heads for result in analysis.single] == [(), *((head,) for head in heads)]
    assert len(analysis.cumulative[-1].heads) == len(heads)
    for role in analysis.roles:
        assert 0 <= role.entropy <= 1
        assert 0 < role.itself + role.previous + role.following + role.separator < 2


def test_measures_of_simple_attention_patterns() -> None:
    even, itself, previous = np.full((4, 4), 0.25), np.eye(4), np.eye(4, k=-1)
    previous[0, 0] = 1
    is_rare = np.asarray([False, True, False, False])
    measures = head_measures(np.stack([even, itself, previous]).astype(np.float32), is_rare)
    np.testing.assert_allclose(measures[0], [1, 1.25, 0.25, 3 / 16, 3 / 16, 0.5, 0.25], atol=1e-5)
    np.testing.assert_allclose(measures[1], [0, 0, 1, 0, 0, 0.5, 0.25], atol=1e-5)
    np.testing.assert_allclose(measures[2], [0, 0.75, 0.25, 0.75, 0, 0.5, 0.25], atol=1e-5)


def test_a_head_is_named_by_where_most_of_its_attention_goes() -> None:
    def role(**changes: float) -> str:
        defaults = {"itself": 0.1, "previous": 0.1, "following": 0.1, "separator": 0.1, "rare": 1.0}
        return HeadRole((0, 0), changes.pop("entropy", 0.5), 3.0, **(defaults | changes)).role

    assert role(separator=0.7, itself=0.5) == "separator"
    assert (role(itself=0.5), role(previous=0.5), role(following=0.5)) == ("itself", "previous", "following")
    assert (role(rare=2.0), role(entropy=0.95), role()) == ("rare words", "broad", "mixed")


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("up", "letters"),
        ("涨", "Chinese"),
        ("3.5", "number"),
        ("，", "punctuation"),
        ("$", "punctuation"),
        ("👍", "other"),
    ],
)
def test_words_have_a_kind(word: str, kind: str) -> None:
    assert kind_of(word) == kind
    assert kind_of("https://t.co/a") == "link"
