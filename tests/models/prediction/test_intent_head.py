from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from models.prediction.calibration import entropy, log_softmax
from models.prediction.intent_head import TENSORS, IntentHead, empirical_cdf, load_head, predict_intents, save_head
from models.prediction.intent_head_fit import (
    GROUPS,
    MAX_GROUPS,
    Examples,
    FitReport,
    cluster_centroids,
    fit_intent_head,
    fit_temperature,
    fit_uncalibrated,
)
from models.prediction.normalize import normalize_centered
from models.prediction.tensor_file import ArtifactError

WIDTH = 24
LABELS = ("close", "open", "pay", "refund")
ENCODER = "e" * 64


def drawn(seed: int, rows: int, spread: float = 0.35) -> Examples:
    """Vectors about a direction for each intent."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(0, 1, (len(LABELS), WIDTH))
    numbers = rng.integers(0, len(LABELS), rows)
    vectors = centres[numbers] + rng.normal(0, spread, (rows, WIDTH)) + 3.0  # vectors of encoders lie in a cone
    return Examples(vectors.astype(np.float32), tuple(LABELS[number] for number in numbers))


def strangers(rows: int) -> NDArray[np.float32]:
    return np.asarray(np.random.default_rng(9).normal(0, 1, (rows, WIDTH)) + 3.0, np.float32)


@pytest.fixture(scope="module")
def made() -> tuple[IntentHead, FitReport]:
    return fit_intent_head("mine", ["en"], ENCODER, drawn(1, 300))


@pytest.fixture(scope="module")
def head(made: tuple[IntentHead, FitReport]) -> IntentHead:
    return made[0]


def test_a_head_tells_new_texts_apart_and_knows_how_well_it_does(made: tuple[IntentHead, FitReport]) -> None:
    head, report = made
    unseen = drawn(2, 400)
    verdicts = predict_intents(head, unseen.vectors)
    answers = [head.labels[place] for place in verdicts.confidences.argmax(axis=1)]
    accuracy = np.mean([one == other for one, other in zip(answers, unseen.labels, strict=True)])
    assert accuracy > 0.95
    assert report.accuracy == pytest.approx(accuracy, abs=0.04)
    np.testing.assert_allclose(verdicts.confidences.sum(axis=1), 1)


def test_the_threshold_turns_away_the_share_that_was_asked_for(head: IntentHead) -> None:
    assert head.threshold == pytest.approx(0.95)
    belongs = predict_intents(head, drawn(3, 2000).vectors).out_of_scope_scores
    assert 0.02 < float((belongs > head.threshold).mean()) < 0.1
    assert float((predict_intents(head, strangers(500)).out_of_scope_scores > head.threshold).mean()) > 0.9


def test_between_two_ways_to_ask_for_an_intent_is_outside_it() -> None:
    """Though its mean is right there."""
    rng = np.random.default_rng(1)
    ways = np.random.default_rng(0).normal(0, 1, (6, WIDTH))  # two for each of three intents
    numbers = np.arange(600) % 6
    vectors = (ways[numbers] + rng.normal(0, 0.2, (600, WIDTH)) + 3.0).astype(np.float32)
    head, _ = fit_intent_head(
        "mine", ["en"], ENCODER, Examples(vectors, tuple(LABELS[number // 2] for number in numbers))
    )
    between = (ways[::2] + ways[1::2]) / 2 + rng.normal(0, 0.2, (100, 3, WIDTH)) + 3.0
    assert (predict_intents(head, between.reshape(-1, WIDTH)).out_of_scope_scores > head.threshold).mean() > 0.9


def test_few_examples_are_each_a_group_and_many_are_gathered() -> None:
    few, many = drawn(1, GROUPS), drawn(1, 40 * GROUPS)
    np.testing.assert_array_equal(cluster_centroids(few.vectors, GROUPS), few.vectors)
    groups = cluster_centroids(many.vectors, GROUPS)
    assert groups.shape == (GROUPS, WIDTH)
    nearest = np.linalg.norm(many.vectors[:, None] - groups, axis=2).min(axis=1)
    assert nearest.mean() < np.linalg.norm(many.vectors - many.vectors.mean(axis=0), axis=1).mean() / 2


def test_of_many_intents_none_has_many_groups() -> None:
    labels = MAX_GROUPS // 4
    chance = np.random.default_rng(5)
    centres = np.repeat(chance.normal(0, 1, (labels, WIDTH)), 6, axis=0)
    vectors = (centres + chance.normal(0, 0.1, centres.shape)).astype(np.float32)
    head = fit_uncalibrated(
        "many", tuple(map(str, range(labels))), ["en"], ENCODER, vectors, np.repeat(np.arange(labels), 6)
    )
    assert len(head.groups) == MAX_GROUPS


def test_scores_rise_with_the_distance_within_0_and_1_also_beyond_all_that_was_seen() -> None:
    known = np.asarray([1, 2, 3, 4], np.float32)
    scores = empirical_cdf(np.asarray([0.0, 1.0, 2.5, 4.0, 5.0, 50.0, 5000.0]), known)
    assert scores.tolist() == sorted(scores.tolist())
    assert len(set(scores[1:-1].tolist())) == 5
    assert scores[0] == 0
    assert scores[-1] <= 1


def test_a_vectors_verdict_does_not_depend_on_its_batch(head: IntentHead) -> None:
    vectors = drawn(4, 40).vectors
    together = predict_intents(head, vectors)
    alone = [predict_intents(head, vector[None]) for vector in vectors]
    np.testing.assert_allclose(together.confidences, np.concatenate([one.confidences for one in alone]), atol=1e-5)
    np.testing.assert_allclose(
        together.out_of_scope_scores, np.concatenate([one.out_of_scope_scores for one in alone]), atol=1e-5
    )


def test_what_is_saved_comes_back(head: IntentHead, tmp_path: Path) -> None:
    path = tmp_path / "mine.head.safetensors"
    save_head(head, path)
    loaded = load_head(path, ENCODER)
    assert (loaded.name, loaded.labels, loaded.figures) == (head.name, head.labels, head.figures)
    vectors = drawn(5, 10).vectors
    np.testing.assert_array_equal(
        predict_intents(loaded, vectors).confidences, predict_intents(head, vectors).confidences
    )
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_head_made_before_there_was_a_power_answers_as_it_did(head: IntentHead, tmp_path: Path) -> None:
    path = tmp_path / "mine.head.safetensors"
    plain = replace(head, power=0.0)
    save_head(plain, path)
    with safe_open(str(path), "numpy") as file:
        about = json.loads(file.metadata()["heed"])
    assert about.pop("power") == 0
    save_file(load_file(path), path, {"heed": json.dumps(about)})
    vectors = drawn(5, 10).vectors
    np.testing.assert_array_equal(
        predict_intents(load_head(path, ENCODER), vectors).confidences, predict_intents(plain, vectors).confidences
    )


def test_a_head_made_before_there_were_groups_answers_as_it_did(head: IntentHead, tmp_path: Path) -> None:
    path = tmp_path / "mine.head.safetensors"
    save_head(head, path)
    with safe_open(str(path), "numpy") as file:
        about = file.metadata()
    tensors = load_file(path)
    del tensors["groups"]
    save_file(tensors, path, about)
    vectors = drawn(5, 10).vectors
    place = normalize_centered(vectors, head.center) @ head.whiten
    squares = ((place[:, None] - head.means) ** 2).sum(axis=2).min(axis=1)
    outside = predict_intents(load_head(path, ENCODER), vectors).out_of_scope_scores
    np.testing.assert_allclose(outside, empirical_cdf(squares, head.belonging), atol=1e-4)


@pytest.mark.parametrize("name", TENSORS)
def test_a_head_of_arrays_that_do_not_fit_is_refused(head: IntentHead, name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.head.safetensors"
    save_head(head, path)
    with safe_open(str(path), "numpy") as file:
        about = file.metadata()
    for wrong in (np.zeros((), np.float32), np.zeros(3, np.float32), np.zeros((3, 3), np.float32)):
        if name == "belonging" and wrong.ndim == 1:
            continue
        save_file(load_file(path) | {name: wrong}, tmp_path / "x.head.safetensors", about)
        with pytest.raises(ArtifactError):
            load_head(tmp_path / "x.head.safetensors", ENCODER)


def test_confidences_too_high_only_where_they_are_high_are_a_matter_of_the_power() -> None:
    chance = np.random.default_rng(3)
    logits = chance.normal(0, 1, (6000, 4)) * chance.uniform(0.5, 6, (6000, 1))
    truth = (np.exp(log_softmax(logits)).cumsum(axis=1) < chance.random((6000, 1))).sum(axis=1)
    np.testing.assert_allclose(fit_temperature(logits, truth), (1, 0), atol=0.1)
    assert fit_temperature(3 * logits, truth)[0] > 2
    high = logits * entropy(logits)[:, None] ** -0.3  # the surer, the more too high
    power = fit_temperature(high, truth)[1]
    assert power < -0.05
    assert abs(fit_temperature(high[:40], truth[:40])[1]) < abs(power) / 2  # so few rows cannot tell


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (("close", "open", "pay", "pay"), "'pay' is there twice"),
        (("close", "open", "pay", " "), "an intent has no name"),
        (("close", "open", "pay"), "shapes"),
        (("close",), "1 intents"),
    ],
)
def test_a_head_with_wrong_labels_is_refused(
    head: IntentHead, labels: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    save_head(replace(head, labels=labels), tmp_path / "x.head.safetensors")
    with pytest.raises(ArtifactError, match=says):
        load_head(tmp_path / "x.head.safetensors", ENCODER)


def test_a_head_of_another_encoder_is_refused(head: IntentHead, tmp_path: Path) -> None:
    save_head(head, tmp_path / "x.head.safetensors")
    with pytest.raises(ArtifactError, match="another encoder"):
        load_head(tmp_path / "x.head.safetensors", "f" * 64)


def test_what_is_no_head_is_refused(head: IntentHead, tmp_path: Path) -> None:
    path = tmp_path / "x.head.safetensors"
    for content in (b"", b"\x80\x04 pickled", b"{" * 5000):
        path.write_bytes(content)
        with pytest.raises(ArtifactError):
            load_head(path, ENCODER)
    save_file({"weight": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(ArtifactError, match="not a file of the kind"):
        load_head(path, ENCODER)
    save_head(replace(head, weight=head.weight * np.nan), path)
    with pytest.raises(ArtifactError, match="no number"):
        load_head(path, ENCODER)


def test_ten_examples_of_each_intent_are_enough_for_a_head_and_its_figures() -> None:
    few = drawn(6, 60)
    head, report = fit_intent_head("few", ["en"], ENCODER, few)
    assert report.accuracy > 0.8
    assert len(head.labels) == len(LABELS)


def test_a_text_that_is_there_twice_does_not_open_a_head_of_few_examples_to_all() -> None:
    few = drawn(6, 60)
    twice = Examples(np.concatenate([few.vectors, few.vectors[:6]]), few.labels + few.labels[:6])
    head, _ = fit_intent_head("few", ["en"], ENCODER, twice)
    assert float((predict_intents(head, strangers(500)).out_of_scope_scores > head.threshold).mean()) > 0.9


def test_two_intents_are_enough() -> None:
    every = drawn(7, 80)
    kept = [number for number, label in enumerate(every.labels) if label in LABELS[:2]]
    two = Examples(every.vectors[kept], tuple(every.labels[number] for number in kept))
    head, report = fit_intent_head("two", ["en"], ENCODER, two)
    assert head.labels == LABELS[:2]
    assert report.accuracy > 0.9
    answers = predict_intents(head, two.vectors).confidences.argmax(axis=1)
    assert float(np.mean([head.labels[place] == own for place, own in zip(answers, two.labels, strict=True)])) > 0.95


def test_examples_that_look_mislabelled_are_named() -> None:
    rows = drawn(8, 200)
    wrong = list(rows.labels)
    wrong[17] = next(label for label in LABELS if label != wrong[17])
    _, report = fit_intent_head("mine", ["en"], ENCODER, Examples(rows.vectors, tuple(wrong)))
    assert report.label_issues[0].index == 17
    assert report.label_issues[0].looks_like == rows.labels[17]
    assert report.confusions


@pytest.mark.parametrize(
    ("labels", "says"),
    [(("a",) * 8, "have 1 intent"), (("a",) * 7 + ("b",), "'b' has one example")],
)
def test_too_few_examples_are_refused(labels: tuple[str, ...], says: str) -> None:
    with pytest.raises(ArtifactError, match=says):
        fit_intent_head("mine", ["en"], ENCODER, Examples(drawn(1, 8).vectors, labels))
