from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from models.prediction.calibration import entropy, log_softmax
from models.prediction.intent_head import TENSORS, IntentHead, empirical_cdf, load_head, predict_intents, save_head
from models.prediction.intent_head_fit import (
    MAX_GROUPS_PER_HEAD,
    MAX_GROUPS_PER_INTENT,
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


def draw_examples(seed: int, rows: int, spread: float = 0.35) -> Examples:
    """Return examples whose vectors are scattered about a direction for each intent."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(0, 1, (len(LABELS), WIDTH))
    targets = rng.integers(0, len(LABELS), rows)
    vectors = centres[targets] + rng.normal(0, spread, (rows, WIDTH)) + 3.0  # vectors of encoders lie in a cone
    return Examples(vectors.astype(np.float32), tuple(LABELS[target] for target in targets))


def draw_out_of_scope(rows: int) -> NDArray[np.float32]:
    return np.asarray(np.random.default_rng(9).normal(0, 1, (rows, WIDTH)) + 3.0, np.float32)


@pytest.fixture(scope="module")
def fitted() -> tuple[IntentHead, FitReport]:
    return fit_intent_head("mine", ["en"], ENCODER, draw_examples(1, 300))


@pytest.fixture(scope="module")
def head(fitted: tuple[IntentHead, FitReport]) -> IntentHead:
    return fitted[0]


@pytest.mark.slow
def test_a_head_classifies_unseen_texts_as_accurately_as_its_report_says(
    fitted: tuple[IntentHead, FitReport],
) -> None:
    head, report = fitted
    unseen = draw_examples(2, 400)
    predictions = predict_intents(head, unseen.vectors)
    predicted = [head.labels[index] for index in predictions.confidences.argmax(axis=1)]
    accuracy = np.mean([label == truth for label, truth in zip(predicted, unseen.labels, strict=True)])
    assert accuracy > 0.95
    assert report.accuracy == pytest.approx(accuracy, abs=0.04)
    np.testing.assert_allclose(predictions.confidences.sum(axis=1), 1)


def test_the_threshold_rejects_the_requested_share(head: IntentHead) -> None:
    assert head.threshold == pytest.approx(0.95)
    in_scope = predict_intents(head, draw_examples(3, 2000).vectors).out_of_scope_scores
    assert 0.02 < float((in_scope > head.threshold).mean()) < 0.1
    assert float((predict_intents(head, draw_out_of_scope(500)).out_of_scope_scores > head.threshold).mean()) > 0.9


@pytest.mark.slow
def test_a_text_between_two_wordings_of_an_intent_is_out_of_scope_though_near_its_mean() -> None:
    rng = np.random.default_rng(1)
    wordings = np.random.default_rng(0).normal(0, 1, (6, WIDTH))  # two for each of three intents
    choices = np.arange(600) % 6
    vectors = (wordings[choices] + rng.normal(0, 0.2, (600, WIDTH)) + 3.0).astype(np.float32)
    head, _ = fit_intent_head(
        "mine", ["en"], ENCODER, Examples(vectors, tuple(LABELS[choice // 2] for choice in choices))
    )
    between = (wordings[::2] + wordings[1::2]) / 2 + rng.normal(0, 0.2, (100, 3, WIDTH)) + 3.0
    assert (predict_intents(head, between.reshape(-1, WIDTH)).out_of_scope_scores > head.threshold).mean() > 0.9


def test_few_examples_stay_single_groups_and_many_are_clustered() -> None:
    few, many = draw_examples(1, MAX_GROUPS_PER_INTENT), draw_examples(1, 40 * MAX_GROUPS_PER_INTENT)
    np.testing.assert_array_equal(cluster_centroids(few.vectors, MAX_GROUPS_PER_INTENT), few.vectors)
    groups = cluster_centroids(many.vectors, MAX_GROUPS_PER_INTENT)
    assert groups.shape == (MAX_GROUPS_PER_INTENT, WIDTH)
    nearest = np.linalg.norm(many.vectors[:, None] - groups, axis=2).min(axis=1)
    assert nearest.mean() < np.linalg.norm(many.vectors - many.vectors.mean(axis=0), axis=1).mean() / 2


@pytest.mark.slow
def test_many_intents_share_the_limit_of_groups() -> None:
    labels = MAX_GROUPS_PER_HEAD // 4
    rng = np.random.default_rng(5)
    centres = np.repeat(rng.normal(0, 1, (labels, WIDTH)), 6, axis=0)
    vectors = (centres + rng.normal(0, 0.1, centres.shape)).astype(np.float32)
    head = fit_uncalibrated(
        "many", tuple(map(str, range(labels))), ["en"], ENCODER, vectors, np.repeat(np.arange(labels), 6)
    )
    assert len(head.groups) == MAX_GROUPS_PER_HEAD


def test_scores_rise_with_the_distance_from_0_to_1_beyond_the_farthest_text_too() -> None:
    known = np.asarray([1, 2, 3, 4], np.float32)
    scores = empirical_cdf(np.asarray([0.0, 1.0, 2.5, 4.0, 5.0, 50.0, 5000.0]), known)
    assert scores.tolist() == sorted(scores.tolist())
    assert len(set(scores[1:-1].tolist())) == 5
    assert scores[0] == 0
    assert scores[-1] <= 1


def test_predictions_do_not_depend_on_the_batch(head: IntentHead) -> None:
    vectors = draw_examples(4, 40).vectors
    together = predict_intents(head, vectors)
    alone = [predict_intents(head, vector[None]) for vector in vectors]
    np.testing.assert_allclose(
        together.confidences, np.concatenate([single.confidences for single in alone]), atol=1e-5
    )
    np.testing.assert_allclose(
        together.out_of_scope_scores, np.concatenate([single.out_of_scope_scores for single in alone]), atol=1e-5
    )


def test_a_saved_head_loads_unchanged(head: IntentHead, tmp_path: Path) -> None:
    path = tmp_path / "mine.head.safetensors"
    save_head(head, path)
    loaded = load_head(path, ENCODER)
    assert (loaded.name, loaded.labels, loaded.figures) == (head.name, head.labels, head.figures)
    vectors = draw_examples(5, 10).vectors
    np.testing.assert_array_equal(
        predict_intents(loaded, vectors).confidences, predict_intents(head, vectors).confidences
    )
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_head_from_before_powers_predicts_the_same(head: IntentHead, tmp_path: Path) -> None:
    path = tmp_path / "mine.head.safetensors"
    plain = replace(head, power=0.0)
    save_head(plain, path)
    with safe_open(str(path), "numpy") as file:
        description = json.loads(file.metadata()["heed"])
    assert description.pop("power") == 0
    save_file(load_file(path), path, {"heed": json.dumps(description)})
    vectors = draw_examples(5, 10).vectors
    np.testing.assert_array_equal(
        predict_intents(load_head(path, ENCODER), vectors).confidences, predict_intents(plain, vectors).confidences
    )


def test_a_head_from_before_groups_predicts_the_same(head: IntentHead, tmp_path: Path) -> None:
    path = tmp_path / "mine.head.safetensors"
    save_head(head, path)
    with safe_open(str(path), "numpy") as file:
        description = file.metadata()
    tensors = load_file(path)
    del tensors["groups"]
    save_file(tensors, path, description)
    vectors = draw_examples(5, 10).vectors
    whitened = normalize_centered(vectors, head.center) @ head.whiten
    squares = ((whitened[:, None] - head.means) ** 2).sum(axis=2).min(axis=1)
    scores = predict_intents(load_head(path, ENCODER), vectors).out_of_scope_scores
    np.testing.assert_allclose(scores, empirical_cdf(squares, head.belonging), atol=1e-4)


@pytest.mark.parametrize("name", TENSORS)
def test_a_head_whose_arrays_do_not_fit_is_refused(head: IntentHead, name: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.head.safetensors"
    save_head(head, path)
    with safe_open(str(path), "numpy") as file:
        description = file.metadata()
    for wrong in (np.zeros((), np.float32), np.zeros(3, np.float32), np.zeros((3, 3), np.float32)):
        if name == "belonging" and wrong.ndim == 1:
            continue
        save_file(load_file(path) | {name: wrong}, tmp_path / "x.head.safetensors", description)
        with pytest.raises(ArtifactError):
            load_head(tmp_path / "x.head.safetensors", ENCODER)


def test_overconfidence_only_at_high_confidences_is_fitted_by_the_power() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1, (6000, 4)) * rng.uniform(0.5, 6, (6000, 1))
    truth = (np.exp(log_softmax(logits)).cumsum(axis=1) < rng.random((6000, 1))).sum(axis=1)
    np.testing.assert_allclose(fit_temperature(logits, truth), (1, 0), atol=0.1)
    assert fit_temperature(3 * logits, truth)[0] > 2
    high = logits * entropy(logits)[:, None] ** -0.3  # overconfidence that grows with the confidence
    power = fit_temperature(high, truth)[1]
    assert power < -0.05
    assert abs(fit_temperature(high[:40], truth[:40])[1]) < abs(power) / 2  # 40 rows are too few evidence


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("close", "open", "pay", "pay"), "'pay' appears twice"),
        (("close", "open", "pay", " "), "an intent has no name"),
        (("close", "open", "pay"), "shapes"),
        (("close",), "1 intents"),
    ],
)
def test_a_head_with_wrong_labels_is_refused(
    head: IntentHead, labels: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    save_head(replace(head, labels=labels), tmp_path / "x.head.safetensors")
    with pytest.raises(ArtifactError, match=message):
        load_head(tmp_path / "x.head.safetensors", ENCODER)


def test_a_head_of_another_encoder_is_refused(head: IntentHead, tmp_path: Path) -> None:
    save_head(head, tmp_path / "x.head.safetensors")
    with pytest.raises(ArtifactError, match="another encoder"):
        load_head(tmp_path / "x.head.safetensors", "f" * 64)


def test_a_file_that_is_no_head_is_refused(head: IntentHead, tmp_path: Path) -> None:
    path = tmp_path / "x.head.safetensors"
    for content in (b"", b"\x80\x04 pickled", b"{" * 5000):
        path.write_bytes(content)
        with pytest.raises(ArtifactError):
            load_head(path, ENCODER)
    save_file({"weight": np.zeros((2, 2), np.float32)}, path)
    with pytest.raises(ArtifactError, match="not a file of the kind"):
        load_head(path, ENCODER)
    save_head(replace(head, weight=head.weight * np.nan), path)
    with pytest.raises(ArtifactError, match="weight should be from -1e\\+06 to 1e\\+06, and finite; fit it again"):
        load_head(path, ENCODER)


@pytest.mark.parametrize(
    ("field", "value", "range_of_it"),
    [
        *(("temperature", value, "0.001 to 1000") for value in (np.nan, np.inf, 1e308, 1e-9, 0.0, -1.0, 10**400)),
        *(("power", value, "-10 to 10") for value in (np.nan, -np.inf, 11.0)),
        *(("threshold", value, "0 to 1") for value in (np.nan, 1.5, -0.1, True, "0.9", None)),
        ("figures", {"accuracy": np.nan}, "finite"),
        ("figures", {"accuracy": "high"}, "finite"),
        *(("name", value, "1 to 128 characters") for value in ("", " ", "n" * 129, 7)),
    ],
)
def test_a_number_or_a_name_outside_its_range_is_refused(
    head: IntentHead, field: str, value: Any, range_of_it: str, tmp_path: Path
) -> None:
    path = tmp_path / "x.head.safetensors"
    save_head(replace(head, **{field: value}), path)
    with pytest.raises(ArtifactError, match=f"x.head.safetensors: its .*{range_of_it}.*; fit it again"):
        load_head(path, ENCODER)


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("value", [np.nan, -np.inf, 3e38])
def test_an_array_outside_its_range_is_refused(head: IntentHead, name: str, value: float, tmp_path: Path) -> None:
    path = tmp_path / "x.head.safetensors"
    array = getattr(head, name).copy()
    array.flat[-1] = value
    save_head(replace(head, **{name: array}), path)
    with pytest.raises(ArtifactError, match=f"the numbers in its {name} should be from .*, and finite"):
        load_head(path, ENCODER)


def test_distances_that_do_not_ascend_are_refused(head: IntentHead, tmp_path: Path) -> None:
    save_head(replace(head, belonging=head.belonging[::-1]), tmp_path / "x.head.safetensors")
    with pytest.raises(ArtifactError, match="belonging should ascend"):
        load_head(tmp_path / "x.head.safetensors", ENCODER)


@pytest.mark.parametrize("size", [1e6, 1e-6])
def test_predictions_at_the_bounds_are_finite(head: IntentHead, size: float) -> None:
    arrays = {name: np.sign(getattr(head, name)) * np.float32(size) for name in TENSORS if name != "belonging"}
    extremes = replace(head, **arrays, temperature=1e-3, power=-10.0, belonging=np.zeros(1, np.float32))
    predictions = predict_intents(extremes, draw_examples(5, 10).vectors)
    assert np.isfinite(predictions.confidences).all()
    assert np.isfinite(predictions.out_of_scope_scores).all()


@pytest.mark.parametrize("description", ["[" * 100_000, '{"format": "heed-head-1"}', "[]", "3", "not JSON"])
def test_a_description_of_another_kind_is_refused(head: IntentHead, description: str, tmp_path: Path) -> None:
    path = tmp_path / "x.head.safetensors"
    save_head(head, path)
    save_file(load_file(path), path, {"heed": description})
    with pytest.raises(ArtifactError, match=r"x\.head\.safetensors: "):
        load_head(path, ENCODER)


def test_ten_examples_per_intent_are_enough_for_a_head_and_its_figures() -> None:
    few = draw_examples(6, 60)
    head, report = fit_intent_head("few", ["en"], ENCODER, few)
    assert report.accuracy > 0.8
    assert len(head.labels) == len(LABELS)


def test_duplicate_texts_do_not_disable_rejection_in_a_head_of_few_examples() -> None:
    few = draw_examples(6, 60)
    twice = Examples(np.concatenate([few.vectors, few.vectors[:6]]), few.labels + few.labels[:6])
    head, _ = fit_intent_head("few", ["en"], ENCODER, twice)
    assert float((predict_intents(head, draw_out_of_scope(500)).out_of_scope_scores > head.threshold).mean()) > 0.9


def test_two_intents_are_enough() -> None:
    examples = draw_examples(7, 80)
    rows = [row for row, label in enumerate(examples.labels) if label in LABELS[:2]]
    two = Examples(examples.vectors[rows], tuple(examples.labels[row] for row in rows))
    head, report = fit_intent_head("two", ["en"], ENCODER, two)
    assert head.labels == LABELS[:2]
    assert report.accuracy > 0.9
    predicted = predict_intents(head, two.vectors).confidences.argmax(axis=1)
    assert np.mean([head.labels[index] == label for index, label in zip(predicted, two.labels, strict=True)]) > 0.95


def test_examples_that_look_mislabelled_are_reported() -> None:
    examples = draw_examples(8, 200)
    wrong = list(examples.labels)
    wrong[17] = next(label for label in LABELS if label != wrong[17])
    _, report = fit_intent_head("mine", ["en"], ENCODER, Examples(examples.vectors, tuple(wrong)))
    assert report.label_issues[0].index == 17
    assert report.label_issues[0].looks_like == examples.labels[17]
    assert report.confusions


@pytest.mark.parametrize(
    ("labels", "message"),
    [(("a",) * 8, "have 1 intent"), (("a",) * 7 + ("b",), "'b' has one example")],
)
def test_too_few_examples_are_refused(labels: tuple[str, ...], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        fit_intent_head("mine", ["en"], ENCODER, Examples(draw_examples(1, 8).vectors, labels))
