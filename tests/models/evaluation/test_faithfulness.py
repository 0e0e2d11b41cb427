from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import load_bundle
from models.data.classification import Dataset
from models.data.dialogues import LabelSet, ReplySet
from models.evaluation.explanation_samples import intent_instances, reply_instances, text_instances
from models.evaluation.faithfulness import (
    RANDOM,
    FaithfulnessReport,
    area_under_curve,
    average_faithfulness,
    faithfulness_table,
    measure_faithfulness,
    order_by_weight,
    perturbation_curves,
    summarize_curves,
    write_faithfulness,
)
from models.explain.attribution import METHODS
from models.explain.explainer import open_explainer
from models.prediction.intent_head import load_bundle_heads
from models.prediction.reply_ranker import RANKER, load_ranker
from tests.support.tiny_bundle import tiny_bundle, tiny_intent_bundle

pytestmark = pytest.mark.slow


def linear_instance(weights: list[float]) -> Any:
    """Return an instance whose score is the sum of the weights of the features that are kept."""

    def score(masks: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.asarray(masks @ np.asarray(weights))

    return SimpleNamespace(score=score)


TEN = [0.5, 0.2, 0.1, 0.1, 0.05, 0.05, 0.0, 0.0, 0.0, 0.0]


def test_equal_weights_keep_the_order_of_features() -> None:
    assert order_by_weight(np.asarray([0.0, 2.0, -1.0, 2.0])).tolist() == [1, 3, 0, 2]


def test_figures_of_a_linear_instance_equal_those_computed_by_hand() -> None:
    report = summarize_curves(
        "set", "occlusion", [perturbation_curves(linear_instance(TEN), np.arange(10))], rows=1, milliseconds=1.0
    )
    # For ten features the bins hold 1, 1, 1, 2 and 5.
    assert report.comprehensiveness == pytest.approx((0.5 * 3 + 0.7 + 0.95) / 5)
    assert report.sufficiency == pytest.approx((0.5 * 3 + 0.3 + 0.05) / 5)
    assert report.deletion == pytest.approx((1, 0.5, 0.3, 0.2, 0.1, 0.05, 0, 0, 0, 0, 0))
    assert report.insertion == pytest.approx((0, 0.5, 0.7, 0.8, 0.9, 0.95, 1, 1, 1, 1, 1))
    assert report.deletion_area == pytest.approx(0.165)
    assert report.insertion_area == pytest.approx(0.835)


def test_the_best_order_beats_the_worst() -> None:
    best, worst = (
        summarize_curves("set", "occlusion", [perturbation_curves(linear_instance(TEN), order)], 1, 0.0)
        for order in (np.arange(10), np.arange(10)[::-1])
    )
    assert best.comprehensiveness > worst.comprehensiveness
    assert best.sufficiency < worst.sufficiency
    assert best.deletion_area < worst.deletion_area
    assert best.insertion_area > worst.insertion_area


@pytest.mark.parametrize("features", [2, 3, 7])
def test_curves_of_short_texts_are_complete(features: int) -> None:
    report = summarize_curves(
        "set",
        "occlusion",
        [perturbation_curves(linear_instance([1 / features] * features), np.arange(features))],
        1,
        0.0,
    )
    assert np.isfinite([report.comprehensiveness, report.sufficiency, *report.deletion, *report.insertion]).all()
    assert [report.deletion[0], report.deletion[-1]] == pytest.approx([1, 0])


def test_the_area_is_under_the_curve_from_no_to_all_features() -> None:
    assert area_under_curve([0.4] * 11) == pytest.approx(0.4)
    assert area_under_curve(np.linspace(1, 0, 11).tolist()) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def measured(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[FaithfulnessReport]:
    bundle = load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))
    labels = ("negative", "neutral", "positive")
    # Texts of "companies" have only the entity and one word, so there is nothing to rank.
    sets = [Dataset(name, "en", labels, "MIT") for name in ("news", "companies", "reviews_zh")]
    explainer = open_explainer(bundle)
    return list(measure_faithfulness(explainer, text_instances(explainer, data, sets), rows=6))


def test_every_method_and_random_orders_are_measured_on_every_set_with_words_to_rank(
    measured: list[FaithfulnessReport],
) -> None:
    assert [(row.dataset, row.method) for row in measured] == [
        (name, method) for name in ("news", "reviews_zh") for method in (*METHODS, RANDOM)
    ]
    assert {row.rows for row in measured} == {6}
    assert all(row.milliseconds > 0 for row in measured if row.method != RANDOM)


def test_score_methods_beat_random_orders_even_on_an_untrained_network(
    measured: list[FaithfulnessReport],
) -> None:
    means = {row.method: row for row in average_faithfulness(measured)}
    for method in ("occlusion", "two_sided_occlusion", "shapley"):
        assert means[method].comprehensiveness > means[RANDOM].comprehensiveness + 0.02
        assert means[method].deletion_area < means[RANDOM].deletion_area


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of texts and a set of replies, in the layout of the published sets."""
    folder = tmp_path_factory.mktemp("dialogues")
    for name in ("letters", "star"):
        (folder / name).mkdir()
    rows = [{"text": f"{letter * 3} {letter} {number}", "label": letter} for letter in "abc" for number in range(4)]
    write_rows(folder / "letters", [*rows, {"text": "zz zz", "label": "oos"}])
    templates = {action: f"{action * 4} now" for action in "abc"}
    (folder / "star" / "response_templates.json").write_text(json.dumps({"talk": templates}))
    turns = [
        {"speaker": "customer", "text": "aa bb"},
        {"speaker": "agent", "text": "bbbb now", "action": "b", "options": ["a", "b", "c"]},
        {"speaker": "customer", "text": "cc aa"},
        {"speaker": "agent", "text": "aaaa now", "action": "a", "options": ["a"]},
    ]
    write_rows(folder / "star", [{"tasks": ["talk"], "turns": turns}] * 3)
    return folder


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    with gzip.open(folder / "validation.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_intents_and_replies_are_measured_like_texts(dialogues: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = load_bundle(tiny_intent_bundle(tmp_path_factory.mktemp("bundle")))
    explainer, heads = open_explainer(bundle), load_bundle_heads(bundle.path, bundle.encoder_digest)
    sources = [LabelSet(name, name, "texts", "en", "MIT", outside="oos") for name in ("letters", "absent")]
    ranker = load_ranker(bundle.path / RANKER)
    sets = [
        *intent_instances(explainer, dialogues, sources, heads),
        *reply_instances(explainer, dialogues, [ReplySet("star", "star", "star", "en", "MIT")], ranker),
    ]
    reports = list(measure_faithfulness(explainer, sets, rows=50))
    # Rows out of scope and replies offered alone are left out.
    assert {(row.dataset, row.rows) for row in reports} == {("letters", 12), ("star", 3)}
    assert len(reports) == 2 * (len(METHODS) + 1)
    means = {row.method: row for row in average_faithfulness(reports)}
    assert means["shapley"].comprehensiveness > means[RANDOM].comprehensiveness


def test_the_files_contain_the_figures_and_a_picture(measured: list[FaithfulnessReport], tmp_path: Path) -> None:
    write_faithfulness(measured, "words", tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "faithfulness.json").read_text())
    assert rows[0]["comprehensiveness"] == measured[0].comprehensiveness
    assert rows[0]["deletion_area"] == measured[0].deletion_area
    assert (tmp_path / "out" / "faithfulness.md").read_text() == faithfulness_table(measured) + "\n"
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_shows_multiples_of_the_random_order(measured: list[FaithfulnessReport]) -> None:
    rows = [line.split(" | ") for line in faithfulness_table(measured).splitlines()]
    random_row = next(row for row in rows if row[0] == f"| {RANDOM}")
    assert random_row[2] == "1.0"
