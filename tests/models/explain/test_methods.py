"""What is offered is what the tables in the shipped cards say is worth it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models.bundle import CARD, SHIPPED, SHIPPED_INTENT, SHIPPED_RECOMMEND
from models.evaluation.faithfulness import RANDOM
from models.explain import explainer as explain
from models.explain import history as explain_history
from models.explain.explainer import DEFAULT_METHOD
from models.explain.methods import MIN_TIMES_RANDOM, SUPPORTED_METHODS, ExplainableTask

CARDS: dict[ExplainableTask, Path] = {
    "sentiment": SHIPPED / CARD,
    "intent": SHIPPED_INTENT / CARD,
    "replies": SHIPPED_INTENT / CARD,
    "recommend": SHIPPED_RECOMMEND / CARD,
}
# Names of methods in cards that were written before the methods had their present names.
EARLIER_NAMES = {"both_ends": "two_sided_occlusion"}
TEXTS, HISTORIES = {*explain.METHODS, RANDOM}, {*explain_history.HISTORY_METHODS, RANDOM}


def measured(task: ExplainableTask) -> dict[str, tuple[float, float]]:
    """Of each method, its comprehensiveness and how many times random that is; nothing where no card has it."""
    _, _, section = CARDS[task].read_text(encoding="utf-8").partition(f"\n## Explanations: {task}\n")
    table = section.partition("\n## ")[0].partition("| times random |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \|", table, re.MULTILINE)
    return {EARLIER_NAMES.get(name, name): (float(loss), float(times)) for name, loss, times in rows}


MEASURED = [task for task in CARDS if measured(task)]


def test_the_card_of_sentiment_tells_of_explanations() -> None:
    assert "sentiment" in MEASURED


@pytest.mark.parametrize("task", MEASURED)
def test_a_method_is_offered_where_it_was_measured_to_be_three_times_random(task: ExplainableTask) -> None:
    found = measured(task)
    assert set(found) == (HISTORIES if task == "recommend" else TEXTS)
    worth = {name for name, (_, times) in found.items() if times >= MIN_TIMES_RANDOM}
    # Of texts attention alone can be asked for as a map, by its own name, and is no way of weighing.
    assert worth - (set() if task == "recommend" else {"attention"}) == set(SUPPORTED_METHODS[task])


@pytest.mark.parametrize("task", MEASURED)
def test_the_usual_method_beats_random_three_times_and_attention_of_the_last_layer(task: ExplainableTask) -> None:
    found = measured(task)
    assert found[DEFAULT_METHOD][1] >= MIN_TIMES_RANDOM
    assert found[DEFAULT_METHOD][0] > found["attention"][0]
