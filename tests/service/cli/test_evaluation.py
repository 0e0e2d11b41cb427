"""`heed faithfulness` on a tiny bundle: what it prints and writes, and what it refuses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.bundle import load_bundle
from service.cli.main import app
from tests.support.tiny_bundle import tiny_bundle, tiny_intent_bundle


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"text": f"{word} ab 利润", "label": "positive"} for word in ("up", "down", "Cd")]
    (tmp_path / "data" / "none").mkdir(parents=True)
    with gzip.open(tmp_path / "data" / "none" / "validation.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return tmp_path / "data"


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["faithfulness", *arguments])
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
