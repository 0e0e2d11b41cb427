"""The supported methods are those that the tables in the shipped cards show to be worthwhile it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pytest

from models.bundle import CARD, SHIPPED, SHIPPED_INTENT, SHIPPED_RECOMMEND, load_bundle
from models.evaluation.faithfulness import RANDOM
from models.explain.attribution import METHODS, AttentionMethod, GradientMethod, Method, ScoreMethod
from models.explain.explainer import open_explainer
from models.explain.history import HISTORY_METHODS
from models.explain.methods import DEFAULT_METHOD, MIN_TIMES_RANDOM, SUPPORTED_METHODS, ExplainableTask, MethodName
from models.prediction.intent_head import load_bundle_heads
from models.text.tokenizer import Turn
from tests.support.tiny_bundle import tiny_bundle, tiny_intent_bundle

CARDS: dict[ExplainableTask, Path] = {
    "sentiment": SHIPPED / CARD,
    "intent": SHIPPED_INTENT / CARD,
    "replies": SHIPPED_INTENT / CARD,
    "recommend": SHIPPED_RECOMMEND / CARD,
}
# Cards written before a method was renamed have the earlier name.
EARLIER_NAMES = {"both_ends": "two_sided_occlusion"}
TEXT_RANKINGS, HISTORY_RANKINGS = {*METHODS, RANDOM}, {*HISTORY_METHODS, RANDOM}


def measured(task: ExplainableTask) -> dict[str, tuple[float, float]]:
    """Return the comprehensiveness of each method, and as a multiple of random. Empty if the card has no section."""
    _, _, section = CARDS[task].read_text(encoding="utf-8").partition(f"\n## Explanations: {task}\n")
    table = section.partition("\n## ")[0].partition("| times random |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \|", table, re.MULTILINE)
    return {EARLIER_NAMES.get(name, name): (float(loss), float(times)) for name, loss, times in rows}


MEASURED = [task for task in CARDS if measured(task)]


def test_the_card_of_sentiment_has_a_section_on_explanations() -> None:
    assert "sentiment" in MEASURED


@pytest.mark.parametrize("task", MEASURED)
def test_a_method_is_supported_where_it_is_at_least_three_times_random(task: ExplainableTask) -> None:
    figures = measured(task)
    assert set(figures) == (HISTORY_RANKINGS if task == "recommend" else TEXT_RANKINGS)
    worthwhile = {name for name, (_, times) in figures.items() if times >= MIN_TIMES_RANDOM}
    # For texts, `attention` returns maps and is no attribution method.
    assert worthwhile - (set() if task == "recommend" else {"attention"}) == set(SUPPORTED_METHODS[task])


@pytest.mark.parametrize("task", MEASURED)
def test_the_default_method_beats_random_three_times_and_attention_of_the_last_layer(task: ExplainableTask) -> None:
    figures = measured(task)
    assert figures[DEFAULT_METHOD][1] >= MIN_TIMES_RANDOM
    assert figures[DEFAULT_METHOD][0] > figures["attention"][0]


ROOT = Path(__file__).parents[3]
# A request for attention maps uses these two words as well.
WIRE_WORDS = {"attention", "rollout"}
TOY = cast(MethodName, "toy")
TOY_METHODS: dict[str, Method] = {
    "score": ScoreMethod(lambda score, features: np.arange(1.0, features + 1), "the position of the feature"),
    "gradient": GradientMethod(lambda gradient: gradient(np.ones(1))[1][0], "the gradient of the full text"),
    "attention": AttentionMethod(lambda maps, pooling: pooling, "the pooling weights"),
    "additive": ScoreMethod(lambda score, features: np.ones(features), "one for every feature", additive=True),
}


@pytest.fixture(params=[*TOY_METHODS.values()], ids=[*TOY_METHODS])
def toy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MethodName:
    """The name of a toy method, registered in both tables."""
    monkeypatch.setitem(METHODS, TOY, request.param)
    for task, methods in SUPPORTED_METHODS.items():
        monkeypatch.setitem(SUPPORTED_METHODS, task, (*methods, TOY))
    return TOY


def test_a_method_in_both_tables_explains_texts(toy: MethodName, tmp_path: Path) -> None:
    explainer = open_explainer(load_bundle(tiny_bundle(tmp_path)))
    instance = explainer.text_instance("shares fall 利润")
    explanation = explainer.explain(instance, toy)
    assert (explanation.method, explanation.signed) == ("toy", METHODS[toy].signed)
    weights = [word.weight for word in explanation.text.words]
    assert np.isfinite(weights).all()
    assert np.abs(weights).sum() == pytest.approx(np.abs(explainer.attribute(instance, toy)).sum())


@pytest.mark.slow
def test_a_method_in_both_tables_explains_the_turns_of_a_dialogue(toy: MethodName, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_intent_bundle(tmp_path))
    head = next(iter(load_bundle_heads(bundle.path, bundle.encoder_digest).values()))
    explainer = open_explainer(bundle)
    instance = explainer.intent_instance((Turn("agent", "which card"), Turn("customer", "the blue one")), head)
    segments = explainer.explain(instance, toy).segments
    assert len(segments) == 2
    by_turn = explainer.attribute(instance.with_segments_as_features(), toy)
    for segment, weight in zip(segments, by_turn, strict=True):
        expected = sum(word.weight for word in segment.words) if METHODS[toy].additive else weight
        assert segment.weight == pytest.approx(expected)


def test_every_name_has_a_row_and_every_row_a_name() -> None:
    assert set(METHODS) == set(get_args(MethodName))
    for task, methods in SUPPORTED_METHODS.items():
        assert set(methods) <= set(HISTORY_METHODS if task == "recommend" else METHODS)


def named_methods(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and node.value in {*METHODS} - WIRE_WORDS:
            yield str(node.value)


def test_only_two_files_name_methods() -> None:
    """Adding a method edits these files and no others."""
    files = [path for folder in ("models", "service") for path in (ROOT / folder).rglob("*.py")]
    files = [path for path in files if not path.stem.endswith("examples")]
    naming = {path.relative_to(ROOT).as_posix() for path in files if any(named_methods(path))}
    assert naming == {"models/explain/attribution.py", "models/explain/methods.py"}
