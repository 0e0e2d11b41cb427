"""Stability of weights: simple orders, changes of a text, and a graph compared with its weights in fp32."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from models.bundle import SHIPPED, Bundle, load_bundle
from models.data.classification import Dataset
from models.evaluation.explanation_samples import text_instances
from models.evaluation.faithfulness import measure_faithfulness, write_faithfulness
from models.evaluation.stability import (
    CHANGES,
    FP32,
    StabilityReport,
    average_stability,
    change_case,
    measure_stability,
    open_fp32_explainer,
    rank_agreement,
    rank_correlation,
    stability_table,
    toggle_final_period,
    widen_white_space,
    write_stability,
)
from models.explain.attribution import METHODS
from models.explain.explainer import open_explainer
from models.export.card_sections import record_faithfulness
from models.export.card_template import insert_section
from models.graph.builder import build_graph, save_graph
from models.graph.convert import convert_graph
from models.graph.writer import Precision
from models.runtime.onnx import OnnxRuntime
from models.text.encoding import collate
from models.text.tokenizer import Tokenizer
from tests.support.tiny_bundle import HEADS, tiny_bundle, tiny_recommend_bundle, weights

LABELS = ("negative", "neutral", "positive")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(tiny_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def measured(bundle: Bundle, data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[StabilityReport]:
    explainer = open_explainer(bundle)
    exact = open_fp32_explainer(bundle, tmp_path_factory.mktemp("fp32"))
    make_instances = partial(
        text_instances, explainer, data, [Dataset(name, "en", LABELS, "MIT") for name in ("news", "reviews_zh")]
    )
    return list(measure_stability(explainer, exact, lambda change: make_instances(change=change), rows=4))


def test_the_correlation_is_of_ranks() -> None:
    assert rank_correlation(np.asarray([1.0, 2, 3]), np.asarray([1.0, 20, 300])) == pytest.approx(1)
    assert rank_correlation(np.asarray([1.0, 2, 3]), np.asarray([3.0, 2, 1])) == pytest.approx(-1)
    assert rank_correlation(np.asarray([1.0, 2, 2, 4]), np.asarray([1.0, 3, 2, 4])) == pytest.approx(0.9487, abs=1e-4)
    assert np.isnan(rank_correlation(np.zeros(3), np.asarray([1.0, 2, 3])))


def test_words_that_only_one_side_has_are_ignored() -> None:
    pairs = [
        (np.asarray([3.0, 1, 2]), np.asarray([30.0, 10, 20, 90])),
        (np.asarray([3.0, 1, 2, 9]), np.asarray([1.0, 2, 3])),
    ]
    report = rank_agreement("news", "period", "occlusion", 4, pairs)
    assert (report.kept, report.heaviest) == (0.5, 0.5)
    assert report.correlation == pytest.approx((1 - 0.5) / 2)
    empty = rank_agreement("news", "case", "occlusion", 0, [])
    assert np.isnan([empty.kept, empty.correlation, empty.heaviest]).all()


@pytest.mark.parametrize(
    ("text", "entity", "case", "end", "space"),
    [
        ("Shares of Acme up.", "Acme", "shares of Acme up.", "Shares of Acme up", "  Shares  of  Acme  up. \n"),
        ("Acme Co up", "acme co", "Acme Co Up", "Acme Co up.", "  Acme Co  up \n"),
        ("股价大涨", None, "股价大涨", "股价大涨。", "  股价大涨 \n"),
        ("股价 up!", None, "股价 Up!", "股价 up!", "  股价  up! \n"),
        ("3.5 %...", None, "3.5 %...", "3.5 %...", "  3.5  %... \n"),
        (".", None, ".", ".", "  . \n"),
    ],
)
def test_changes_preserve_every_word_and_the_entity(
    text: str, entity: str | None, case: str, end: str, space: str
) -> None:
    assert (change_case(text, entity), toggle_final_period(text, entity), widen_white_space(text, entity)) == (
        case,
        end,
        space,
    )


def test_every_method_is_compared_under_every_difference(measured: list[StabilityReport]) -> None:
    datasets, differences = ("news", "reviews_zh"), (FP32, *CHANGES)
    combinations = {(row.dataset, row.difference, row.method) for row in measured}
    assert combinations == set(product(datasets, differences, METHODS))
    assert {row.rows for row in measured if row.difference == FP32} == {4}


def test_rounding_changes_weights_little(measured: list[StabilityReport]) -> None:
    means = {(row.method, row.difference): row for row in average_stability(measured)}
    for method in METHODS:
        assert 0.8 < means[method, FP32].correlation <= 1 + 1e-9
        assert means[method, FP32].kept == 1


def test_white_space_does_not_change_the_tokens_of_the_shipped_model() -> None:
    bundle = load_bundle(SHIPPED)
    tokenizer = Tokenizer.from_bundle(bundle)
    for text, entity in (("Shares of Acme Co up.", "Acme Co"), ("股价 大涨", None)):
        before, after = (tokenizer.encode(version, entity) for version in (text, widen_white_space(text, entity)))
        assert (before.ids.tolist(), before.token_types.tolist()) == (after.ids.tolist(), after.token_types.tolist())


def test_the_table_has_a_row_for_each_method_and_a_column_for_each_difference(measured: list[StabilityReport]) -> None:
    lines = stability_table(measured).splitlines()
    assert lines[0] == "| rank correlation (same heaviest word) | fp32 | case | period | white space |"
    assert [line.split(" | ")[0] for line in lines[2 : 2 + len(METHODS)]] == [f"| {method}" for method in METHODS]
    assert "fp32 8 texts, 100.0%" in lines[-1]


@pytest.mark.parametrize("storage", ["int8", "mixed", "fp32"])
@pytest.mark.parametrize("learned", [False, True])
def test_the_fp32_graph_has_the_stored_weights(tmp_path: Path, storage: Precision, learned: bool) -> None:
    tensors = weights()
    if learned:
        rounded = [name for name in tensors if name.endswith(("query.weight", "dense.weight"))]
        step = np.asarray(np.log(0.03), np.float32)
        tensors |= {name.replace(".weight", ".log_step"): step for name in rounded}
    for name, kind in (("stored", storage), ("fp32", "fp32"), ("converted", None)):
        (tmp_path / name).mkdir()
        graph = (
            convert_graph(tmp_path / "stored" / "g.onnx", "fp32")
            if kind is None
            else build_graph(tensors, HEADS, 1e-12, kind)
        )
        save_graph(graph, tmp_path / name / "g.onnx")
    path = tmp_path / "tokenizer"
    path.mkdir()
    tokenizer = Tokenizer(tiny_bundle(path) / "tokenizer.json", 512)
    batch = collate([tokenizer.encode("shares fall 股票"), tokenizer.encode("up")], tokenizer.pad_id)
    stored, exact, converted = (
        OnnxRuntime(tmp_path / name / "g.onnx").run(batch) for name in ("stored", "fp32", "converted")
    )
    stored_error, converted_error = np.abs(stored - exact).max(), np.abs(converted - exact).max()
    # Stored weights are rounded once. Arithmetic in 8 bits rounds again.
    assert converted_error < (1e-5 if storage == "fp32" else 0.2)
    assert storage != "int8" or stored_error > 1e-3
    assert storage == "int8" or np.abs(converted - stored).max() < 5e-3


def test_a_graph_for_gpus_cannot_be_converted(tmp_path: Path) -> None:
    save_graph(build_graph(weights(), HEADS, 1e-12, "fp16"), tmp_path / "g.onnx")
    with pytest.raises(ValueError, match="no Attention with q_num_heads"):
        convert_graph(tmp_path / "g.onnx", "fp32")


@pytest.mark.slow
def test_a_card_gets_a_section_on_explanations_and_the_bundle_stays_valid(
    bundle: Bundle, data: Path, measured: list[StabilityReport], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    explainer = open_explainer(bundle)
    instances = text_instances(explainer, data, [Dataset("news", "en", LABELS, "MIT")])
    write_faithfulness(list(measure_faithfulness(explainer, instances, rows=2)), "words", folder)
    write_stability(measured, folder)
    original = load_bundle(tiny_bundle(tmp_path))
    once = record_faithfulness(original, "sentiment", 2, folder)
    again = record_faithfulness(once, "sentiment", 3, folder)
    assert load_bundle(original.path) == again
    assert once.digest != original.digest
    assert (again.encoder_digest, again.metrics, again.calibration) == (
        original.encoder_digest,
        original.metrics,
        original.calibration,
    )
    card = (original.path / "CARD.md").read_text(encoding="utf-8")
    assert card.count("## Explanations: sentiment") == 1
    assert "--rows 3`" in card
    assert "| two_sided_occlusion |" in card
    assert (original.path / "explanations_sentiment.png").read_bytes().startswith(b"\x89PNG")


def test_the_card_of_a_recommender_speaks_of_histories(tmp_path: Path) -> None:
    original, folder = load_bundle(tiny_recommend_bundle(tmp_path)), tmp_path / "measured"
    folder.mkdir()
    (folder / "faithfulness.md").write_text("| two_sided_occlusion |\n")
    (folder / "curves.png").write_bytes(b"\x89PNG")
    recorded = record_faithfulness(original, "recommend", 7, folder)
    assert recorded.digest != original.digest
    assert recorded.model_digest == original.model_digest
    card = (original.path / "CARD.md").read_text(encoding="utf-8")
    assert "remove or keep the items with the largest weights" in card
    assert "up to 7 histories of at most 64 items" in card


def test_a_section_replaces_its_earlier_version_before_the_limits() -> None:
    card = "# m\n\n## Figures\nx\n\n## Limits\n- y\n\n## Attribution\nz\n"
    once = insert_section(card, "## Explanations: intent\nfirst\n\n")
    assert once == card.replace("## Limits", "## Explanations: intent\nfirst\n\n## Limits")
    both = insert_section(once, "## Explanations: replies\nsecond\n\n")
    assert both.index("first") < both.index("second") < both.index("## Limits")
    assert insert_section(both, "## Explanations: intent\nthird\n\n").count("## Explanations: intent\nthird\n\n") == 1
    assert "first" not in insert_section(both, "## Explanations: intent\nthird\n\n")
