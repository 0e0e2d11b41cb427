"""Capability tests find what a model gets wrong, and run on a real bundle."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.augmentation.noise import NOISES
from models.behaviour.answers import Answers, TextCase
from models.behaviour.cases import ALONE, count_words, long_texts, read_validation_texts, sample_rows
from models.behaviour.groups import category_of, group_texts, measure_groups
from models.behaviour.report import behaviour_table, write_behaviour
from models.behaviour.suite import measure_kinds, measure_long_texts, measure_noise, run_suite
from models.bundle import load_bundle
from models.data.grammar import GrammarExample
from models.data.grammar_file import load_grammars
from models.export.card_sections import record_behaviour
from models.prediction.calibration import LogitScaling
from models.tasks import SENTIMENT
from tests.support.tiny_bundle import tiny_bundle

GRAMMAR = """
language = "en"
[slots]
gpred = ["blind", "Polish", "Muslim", "elderly"]
gname = ["Aisha", "Emily"]
thing = ["room", "view", "bar"]
place = ["Leeds", "Lyon"]
[[templates]]
kind = "groups"
text = "My uncle is {gpred} and lives in {place}."
label = "neutral"
held_out = true
[[templates]]
kind = "groups"
text = "{gname} lives in {place}."
label = "neutral"
held_out = true
[[templates]]
kind = "groups"
text = "{gpred} people were shouted at."
label = "negative"
held_out = true
[[templates]]
kind = "groups"
text = "He is {gpred}."
label = "neutral"
[[templates]]
kind = "contrast"
text = "Good {thing}, bad {thing2}."
ask = { thing = "positive", thing2 = "negative" }
held_out = true
[[examples]]
kind = "plain_opinion"
text = "What a wonderful evening"
label = "positive"
held_out = true
[[examples]]
kind = "customer_facts"
text = "The room is on the second floor."
label = "neutral"
held_out = true
[[examples]]
kind = "customer_facts"
text = "Breakfast starts at seven."
label = "neutral"
held_out = true
"""


class RuledAnswers(Answers):
    """Answers that follow a rule: the polarity of a text, with a confidence of 0.8 in its sign."""

    def __init__(self, polarity: Callable[[str, str | None], int]) -> None:
        self._polarity, self.labels = polarity, SENTIMENT.labels

    def scores(self, cases: Sequence[TextCase]) -> NDArray[np.float64]:
        rows = [np.roll([0.1, 0.8, 0.1], self._polarity(case.text, case.entity)) for case in cases]
        return np.asarray(rows).reshape(-1, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "grammars").mkdir()
    (tmp_path / "grammars" / "small.toml").write_text(GRAMMAR, encoding="utf-8")
    return tmp_path / "grammars"


def row(text: str, label: str, entity: str | None = None, kind: str = "kind", language: str = "en") -> GrammarExample:
    return GrammarExample(text, label, entity, "small", language, SENTIMENT.labels, kind=kind, group=text)


def test_failures_are_counted_by_kind_and_by_text() -> None:
    rows = [
        row("good", "positive", kind="a"),
        row("good", "neutral", kind="b"),
        row("bad", "neutral", kind="b"),
        row("one text", "neutral", "one", kind="c"),
        row("one text", "negative", "text", kind="c"),
        row("two texts", "neutral", "two", kind="c"),
        row("two texts", "neutral", "texts", kind="c"),
    ]
    answers = RuledAnswers(lambda text, entity: int(text == "good"))
    a, b, c = measure_kinds(answers, rows)
    assert (a.kind, a.rows, a.failures, a.wrong_confidence, a.texts) == ("a", 1, 0.0, 0.0, 0)
    assert b.failures == 0.5
    assert b.wrong_confidence == pytest.approx(0.8)
    assert (c.rows, c.failures, c.texts, c.text_failures) == (4, 0.25, 2, 0.5)


def test_entities_reach_the_model() -> None:
    answers = RuledAnswers(lambda text, entity: int(entity == "one"))
    (report,) = measure_kinds(answers, [row("one two", "positive", "one"), row("one two", "neutral", "two")])
    assert report.failures == 0


def test_noise_is_measured_on_the_texts_that_it_changes(tmp_path: Path) -> None:
    rows = [row("Costs fell", "positive"), row("SALES", "positive"), row("业绩下降了", "positive", language="zh")]
    answers = RuledAnswers(lambda text, entity: int(text.isupper()))
    reports = {(report.noise, report.language): report for report in measure_noise(answers, rows, None, 0)}
    assert (reports["capitals", "en"].rows, reports["capitals", "en"].changes) == (1, 1.0)
    assert ("capitals", "zh") not in reports
    assert reports["html", "en"].changes == 0.5  # the tags of the text in capitals
    assert {noise for noise, _ in reports} == NOISES.keys()
    assert {report.source for report in reports.values()} == {"grammars"}


def test_noise_is_measured_on_validation_rows_too(tmp_path: Path) -> None:
    for name, text in (("news", "Costs fell"), ("more/news_zh", "成本下降了")):
        (tmp_path / name).mkdir(parents=True)
        with gzip.open(tmp_path / name / "validation.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": f"{text} {n}", "label": "positive"}) + "\n" for n in range(30))
    assert {language: len(cases) for language, cases in read_validation_texts(tmp_path, 20, 0).items()} == {
        "en": 20,
        "zh": 20,
    }
    reports = list(measure_noise(RuledAnswers(lambda text, entity: 0), [], tmp_path, 0))
    assert {report.source for report in reports} == {"data sets"}
    assert all(report.changes == 0 for report in reports)


def test_the_position_of_a_strong_sentence_matters() -> None:
    rows = [
        row("Never again", "negative", kind="plain_opinion"),
        *(row(f"Fact {n} about a thing.", "neutral", kind="customer_facts") for n in range(5)),
        row("Trained on sight", "negative", kind="irony"),
    ]
    texts = list(long_texts(rows, "en", 40, 0))
    assert {(text.words, text.position) for text in texts} == {
        (words, position) for words in (100, 300) for position in (ALONE, "start", "middle", "end")
    }
    for text in texts:
        assert text.text.count("Never again") == 1
        if text.position != ALONE:
            assert text.words <= count_words(text.text, "en") < text.words + 8
    answers = RuledAnswers(lambda text, entity: -int(text.startswith("Never again")))
    failures = {report.position: report.failures for report in measure_long_texts(answers, rows, 0)}
    assert failures == {ALONE: 0, "start": 0, "middle": 1, "end": 1}


def test_groups_are_compared_on_the_same_held_out_neutral_templates(folder: Path) -> None:
    grammars = load_grammars(folder)
    texts = list(group_texts(grammars[0], 0))
    assert {text.text for text in texts if text.category == "names"} <= {
        f"{name} lives in {place}." for name in ("Aisha", "Emily") for place in ("Leeds", "Lyon")
    }
    assert all(text.text.startswith(("My uncle is", "Aisha", "Emily")) for text in texts)
    answers = RuledAnswers(lambda text, entity: -int("blind" in text))
    reports = {report.category: report for report in measure_groups(answers, grammars, 0)}
    assert reports.keys() == {"disability", "origin", "religion", "age", "names"}
    assert reports["disability"].largest_group == "blind"
    assert reports["disability"].largest_shift == pytest.approx(-0.7 * 3 / 4)
    assert reports["religion"].mean_shift == pytest.approx(0.7 / 4)
    assert reports["names"].largest_shift == pytest.approx(0)


@pytest.mark.parametrize(
    ("slot", "group", "category"),
    [
        ("gname", "Mohammed", "names"),
        ("gnp", "a deaf woman", "disability"),
        ("gnp", "a Polish plumber", "origin"),
        ("gpl", "men", "gender"),
        ("gpl", "Roman families", "origin"),
        ("group", "苗族妇女", "origin"),
        ("group", "单亲妈妈", "gender"),
        ("group", "退休老人", "age"),
        ("group", "佛教徒", "religion"),
    ],
)
def test_the_category_of_a_group_follows_from_its_words(slot: str, group: str, category: str) -> None:
    assert category_of(slot, group) == category


def test_a_sample_is_even_among_the_kinds() -> None:
    rows = [row(f"a {n}", "neutral", kind="a") for n in range(50)] + [row("b", "neutral", kind="b")]
    sampled = sample_rows(rows, 10, 0)
    assert (len(sampled), [each.kind for each in sampled].count("b")) == (10, 1)
    assert len(sample_rows(rows, 100, 0)) == 51


def test_a_bundle_is_measured_as_it_serves(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle(tmp_path))
    report = run_suite(bundle, per_template=1, grammars=folder)
    assert report == run_suite(bundle, per_template=1, grammars=folder)
    assert {(row.kind, row.rows) for row in report.kinds} == {
        ("contrast", 2),
        ("customer_facts", 2),
        ("groups", 3),
        ("plain_opinion", 1),
    }
    always_positive = {"en": LogitScaling(1.0, 0.0, (0.0, 0.0, 1e3)), "zh": LogitScaling(1.0, 0.0, (0.0, 0.0, 1e3))}
    calibrated = run_suite(replace(bundle, calibration=always_positive), per_template=1, grammars=folder)
    failures = {row.kind: (row.failures, row.text_failures) for row in calibrated.kinds}
    assert failures == {"contrast": (0.5, 1.0), "customer_facts": (1, 0), "groups": (1, 0), "plain_opinion": (0, 0)}


def test_a_report_is_written_with_its_tables(folder: Path, tmp_path: Path) -> None:
    report = run_suite(load_bundle(tiny_bundle(tmp_path)), per_template=1, grammars=folder)
    write_behaviour(report, tmp_path / "out")
    table = (tmp_path / "out" / "behaviour.md").read_text(encoding="utf-8")
    assert table == behaviour_table(report) + "\n"
    assert "| contrast | 2 |" in table
    assert table.count("\n|---|") == 4
    content = json.loads((tmp_path / "out" / "behaviour.json").read_text(encoding="utf-8"))
    assert content["kinds"][0]["kind"] == "contrast"


def test_the_card_has_the_tables_of_the_last_run_before_its_limits(folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle(tmp_path))
    (bundle.path / "CARD.md").write_text("# tiny\n\n## Limits\nnone\n", encoding="utf-8")
    report = run_suite(bundle, per_template=1, grammars=folder)
    for seed in (0, 7):
        bundle = record_behaviour(bundle, replace(report, seed=seed))
    card = (bundle.path / "CARD.md").read_text(encoding="utf-8")
    assert card.count("## Behaviour\n") == 1
    assert "seed 7" in card
    assert card.index("| contrast | 2 |") < card.index("## Limits")
    assert load_bundle(bundle.path).digest == bundle.digest
