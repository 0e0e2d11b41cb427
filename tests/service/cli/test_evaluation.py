"""`heed faithfulness` and `heed evaluate behaviour` on a tiny bundle: what they print, write and refuse."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.bundle import load_bundle
from models.data.grammar_file import read_grammar
from service.cli.main import app
from tests.support.tiny_bundle import tiny_bundle, tiny_intent_bundle


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"text": f"{word} ab 利润", "label": "positive"} for word in ("up", "down", "Cd")]
    (tmp_path / "data" / "none").mkdir(parents=True)
    with gzip.open(tmp_path / "data" / "none" / "validation.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return tmp_path / "data"


def run(*arguments: str, command: str = "faithfulness") -> tuple[int, str]:
    result = CliRunner().invoke(app, [*command.split(), *arguments])
    return result.exit_code, result.output


@pytest.mark.slow
@pytest.mark.parametrize("stable_rows", [0, 1])
def test_figures_are_printed_written_and_put_into_the_card(data: Path, tmp_path: Path, stable_rows: int) -> None:
    bundle, out = load_bundle(tiny_bundle(tmp_path)), tmp_path / "out"
    code, shown = run(
        "sentiment",
        *("--data", str(data), "--bundle", str(bundle.path), "--out", str(out)),
        *("--rows", "2", "--stable-rows", str(stable_rows), "--card"),
    )
    assert code == 0, shown
    after = load_bundle(bundle.path)
    card = (bundle.path / "CARD.md").read_text(encoding="utf-8")
    assert after.digest != bundle.digest
    assert after.encoder_digest == bundle.encoder_digest
    for table in ("faithfulness.md", *["stability.md"] * stable_rows):
        text = (out / table).read_text(encoding="utf-8")
        assert text in shown
        assert text.strip() in card
    assert (out / "stability.json").is_file() is bool(stable_rows)
    assert "none" in json.loads((out / "faithfulness.json").read_text())[0]["dataset"]


def test_without_being_asked_for_it_the_bundle_is_left_alone(data: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle(tmp_path))
    code, shown = run(
        *("--data", str(data), "--bundle", str(bundle.path), "--out", str(tmp_path / "out"), "--stable-rows", "0")
    )
    assert code == 0, shown
    assert load_bundle(bundle.path) == bundle


def test_what_cannot_be_measured_is_refused_with_one_line(data: Path, tmp_path: Path) -> None:
    bundle, intents = tiny_bundle(tmp_path), tiny_intent_bundle(tmp_path)
    for task, own, code, said in (
        ("intent", bundle, 2, "is a model of sentiment"),
        ("sentiment", intents, 2, "is a model of intent"),
        ("replies", intents, 1, "response_templates.json"),
    ):
        found, shown = run(task, "--data", str(data), "--bundle", str(own), "--out", str(tmp_path / "out"))
        assert (found, shown.count("\n")) == (code, 1)
        assert said in shown
    assert not (tmp_path / "out").exists()


def test_capability_tests_are_printed_and_written(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = '[[examples]]\nkind = "irony"\ntext = "Great, rain again"\nlabel = "negative"\nheld_out = true\n'
    (tmp_path / "small.toml").write_text(f'language = "en"\n{content}', encoding="utf-8")
    small = read_grammar(tmp_path / "small.toml")
    monkeypatch.setattr("models.behaviour.suite.load_grammars", lambda folder: [small])
    bundle, out = tiny_bundle(tmp_path), tmp_path / "out"
    code, shown = run(
        *("--bundle", str(bundle), "--data", str(data), "--out", str(out), "--per-template", "1", "--seed", "3"),
        command="evaluate behaviour",
    )
    assert code == 0, shown
    assert (out / "behaviour.md").read_text(encoding="utf-8") in shown
    report = json.loads((out / "behaviour.json").read_text(encoding="utf-8"))
    assert [row["kind"] for row in report["kinds"]] == ["irony"]
    assert {row["source"] for row in report["noise"]} == {"grammars", "data sets"}
    assert (report["seed"], report["per_template"]) == (3, 1)


def test_capability_tests_are_for_sentiment(tmp_path: Path) -> None:
    code, shown = run("--bundle", str(tiny_intent_bundle(tmp_path)), command="evaluate behaviour")
    assert (code, shown.count("\n")) == (2, 1)
    assert "not of sentiment" in shown


@pytest.mark.parametrize("arguments", [(), ("intent",), ("files", "intent")])
def test_files_are_measured_when_no_command_is_named(arguments: tuple[str, ...]) -> None:
    code, shown = run(*arguments, command="evaluate")
    assert code == 2
    assert "--data" in shown
