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
def found(bundle: Bundle) -> AttentionAnalysis:
    explainer = open_explainer(bundle)
    rows = [LabelledInstance(explainer.text_instance(text), label) for text, label in ROWS]
    return analyze(bundle.graph, explainer, rows, lambda _: None)


def test_texts_are_counted(found: AttentionAnalysis) -> None:
    assert (found.texts, found.labelled) == (24, 18)
    assert 0 < found.wrong < 18
    assert all(one.row.label not in (None, one.answer) for one in found.mistakes)
    sure = [one.explanation.scores[one.answer] for one in found.mistakes]
    assert sure == sorted(sure, reverse=True)


def test_driving_words_are_the_means_of_their_weights(bundle: Bundle, found: AttentionAnalysis) -> None:
    explainer = open_explainer(bundle)
    weights = []
    label = next(label for label, own in found.driving.items() if any(one.word == "up" for one in own))
    for text, _ in ROWS:
        explanation = explainer.explain(explainer.text_instance(text))
        if explanation.target == label and text.startswith("up"):
            weights.append(sum(word.weight for word in explanation.text.words[:2]))
    (up,) = [one for one in found.driving[label] if one.word == "up"]
    assert up.texts == len(weights)
    assert up.weight == pytest.approx(np.mean(weights), abs=1e-5)


def test_every_head_is_measured_and_masked(found: AttentionAnalysis) -> None:
    places = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
    assert [role.place for role in found.roles] == places
    assert [one.heads for one in found.single] == [(), *((place,) for place in places)]
    assert len(found.cumulative[-1].heads) == len(places)
    for role in found.roles:
        assert 0 <= role.entropy <= 1
        assert 0 < role.itself + role.previous + role.following + role.separator < 2


def test_measures_of_known_attention() -> None:
    even, own, before = np.full((4, 4), 0.25), np.eye(4), np.eye(4, k=-1)
    before[0, 0] = 1
    uncommon = np.asarray([False, True, False, False])
    got = head_measures(np.stack([even, own, before]).astype(np.float32), uncommon)
    np.testing.assert_allclose(got[0], [1, 1.25, 0.25, 3 / 16, 3 / 16, 0.5, 0.25], atol=1e-5)
    np.testing.assert_allclose(got[1], [0, 0, 1, 0, 0, 0.5, 0.25], atol=1e-5)
    np.testing.assert_allclose(got[2], [0, 0.75, 0.25, 0.75, 0, 0.5, 0.25], atol=1e-5)


def test_a_head_is_named_by_where_most_of_its_attention_goes() -> None:
    def role(**more: float) -> str:
        usual = {"itself": 0.1, "previous": 0.1, "following": 0.1, "separator": 0.1, "rare": 1.0}
        return HeadRole((0, 0), more.pop("entropy", 0.5), 3.0, **(usual | more)).role

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
