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
from models.evaluation.explanation_samples import intents, replies, texts
from models.evaluation.faithfulness import (
    RANDOM,
    FaithfulnessReport,
    area,
    faithfulness_table,
    heaviest_first,
    measure_faithfulness,
    over_sets,
    perturbation_curves,
    summary,
    write_faithfulness,
)
from models.explain.explainer import METHODS, open_explainer
from models.prediction.intent_head import load_bundle_heads
from models.prediction.reply_ranker import RANKER, load_ranker
from tests.support.tiny_bundle import tiny_bundle, tiny_intent_bundle

pytestmark = pytest.mark.slow


def question(weights: list[float]) -> Any:
    """An answer whose probability is the sum of the weights of the parts that are kept."""

    def probability(kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        return np.asarray(kept @ np.asarray(weights))

    return SimpleNamespace(score=probability)


TEN = [0.5, 0.2, 0.1, 0.1, 0.05, 0.05, 0.0, 0.0, 0.0, 0.0]


def test_heaviest_first_keeps_the_order_of_equals() -> None:
    assert heaviest_first(np.asarray([0.0, 2.0, -1.0, 2.0])).tolist() == [1, 3, 0, 2]


def test_the_figures_of_a_known_answer_are_those_worked_out_by_hand() -> None:
    found = summary("set", "occlusion", [perturbation_curves(question(TEN), np.arange(10))], rows=1, milliseconds=1.0)
    # Of ten parts the bins take 1, 1, 1, 2 and 5.
    assert found.comprehensiveness == pytest.approx((0.5 * 3 + 0.7 + 0.95) / 5)
    assert found.sufficiency == pytest.approx((0.5 * 3 + 0.3 + 0.05) / 5)
    assert found.deletion == pytest.approx((1, 0.5, 0.3, 0.2, 0.1, 0.05, 0, 0, 0, 0, 0))
    assert found.insertion == pytest.approx((0, 0.5, 0.7, 0.8, 0.9, 0.95, 1, 1, 1, 1, 1))
    assert found.deletion_area == pytest.approx(0.165)
    assert found.insertion_area == pytest.approx(0.835)


def test_the_best_order_beats_the_worst() -> None:
    best, worst = (
        summary("set", "occlusion", [perturbation_curves(question(TEN), order)], 1, 0.0)
        for order in (np.arange(10), np.arange(10)[::-1])
    )
    assert best.comprehensiveness > worst.comprehensiveness
    assert best.sufficiency < worst.sufficiency
    assert best.deletion_area < worst.deletion_area
    assert best.insertion_area > worst.insertion_area


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_a_short_text_has_whole_curves(parts: int) -> None:
    found = summary("set", "occlusion", [perturbation_curves(question([1 / parts] * parts), np.arange(parts))], 1, 0.0)
    assert np.isfinite([found.comprehensiveness, found.sufficiency, *found.deletion, *found.insertion]).all()
    assert [found.deletion[0], found.deletion[-1]] == pytest.approx([1, 0])


def test_an_area_is_that_under_a_curve_from_none_to_all() -> None:
    assert area([0.4] * 11) == pytest.approx(0.4)
    assert area(np.linspace(1, 0, 11).tolist()) == pytest.approx(0.5)


@pytest.fixture(scope="module")
def measured(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[FaithfulnessReport]:
    bundle = load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))
    labels = ("negative", "neutral", "positive")
    # Of "companies" nothing but the entity and one word is there to be ranked.
    sets = [Dataset(name, "en", labels, "MIT") for name in ("news", "companies", "reviews_zh")]
    explainer = open_explainer(bundle)
    return list(measure_faithfulness(explainer, texts(explainer, data, sets), rows=6))


def test_every_method_and_chance_are_measured_on_every_set_that_has_words_to_rank(
    measured: list[FaithfulnessReport],
) -> None:
    assert [(row.dataset, row.method) for row in measured] == [
        (name, method) for name in ("news", "reviews_zh") for method in (*METHODS, RANDOM)
    ]
    assert {row.rows for row in measured} == {6}
    assert all(row.milliseconds > 0 for row in measured if row.method != RANDOM)


def test_methods_that_ask_the_model_beat_chance_even_on_a_network_that_learned_nothing(
    measured: list[FaithfulnessReport],
) -> None:
    means = {row.method: row for row in over_sets(measured)}
    for method in ("occlusion", "two_sided_occlusion", "shapley"):
        assert means[method].comprehensiveness > means[RANDOM].comprehensiveness + 0.02
        assert means[method].deletion_area < means[RANDOM].deletion_area


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of texts and one of replies, as the published sets are filed."""
    folder = tmp_path_factory.mktemp("dialogues")
    for name in ("letters", "star"):
        (folder / name).mkdir()
    rows = [{"text": f"{letter * 3} {letter} {number}", "label": letter} for letter in "abc" for number in range(4)]
    write_rows(folder / "letters", [*rows, {"text": "zz zz", "label": "oos"}])
    offered = {action: f"{action * 4} now" for action in "abc"}
    (folder / "star" / "response_templates.json").write_text(json.dumps({"talk": offered}))
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


def test_intents_and_replies_are_measured_as_texts_are(
    dialogues: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = load_bundle(tiny_intent_bundle(tmp_path_factory.mktemp("bundle")))
    explainer, heads = open_explainer(bundle), load_bundle_heads(bundle.path, bundle.encoder_digest)
    sources = [LabelSet(name, name, "texts", "en", "MIT", outside="oos") for name in ("letters", "absent")]
    ranker = load_ranker(bundle.path / RANKER)
    sets = [
        *intents(explainer, dialogues, sources, heads),
        *replies(explainer, dialogues, [ReplySet("star", "star", "star", "en", "MIT")], ranker),
    ]
    found = list(measure_faithfulness(explainer, sets, rows=50))
    # What is out of scope is not asked, nor a reply that was offered alone.
    assert {(row.dataset, row.rows) for row in found} == {("letters", 12), ("star", 3)}
    assert len(found) == 2 * (len(METHODS) + 1)
    means = {row.method: row for row in over_sets(found)}
    assert means["shapley"].comprehensiveness > means[RANDOM].comprehensiveness


def test_the_files_hold_the_figures_and_a_picture(measured: list[FaithfulnessReport], tmp_path: Path) -> None:
    write_faithfulness(measured, "words", tmp_path / "out")
    rows = json.loads((tmp_path / "out" / "faithfulness.json").read_text())
    assert rows[0]["comprehensiveness"] == measured[0].comprehensiveness
    assert rows[0]["deletion_area"] == measured[0].deletion_area
    assert (tmp_path / "out" / "faithfulness.md").read_text() == faithfulness_table(measured) + "\n"
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_tells_how_many_times_chance_each_method_is(measured: list[FaithfulnessReport]) -> None:
    rows = [line.split(" | ") for line in faithfulness_table(measured).splitlines()]
    chance = next(row for row in rows if row[0] == f"| {RANDOM}")
    assert chance[2] == "1.0"
