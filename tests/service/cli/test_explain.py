from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.explain.attribution import METHODS
from models.explain.methods import SUPPORTED_METHODS
from models.runtime.onnx import OnnxRuntime
from service.cli.main import app
from tests.support.tiny_bundle import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["explain", *arguments])
    return result.exit_code, result.output


def test_a_text_is_shown_with_its_answer_and_the_weights_of_its_words(bundle: Path) -> None:
    code, shown = run("shares fall", "--bundle", str(bundle))
    assert code == 0
    label, score = shown.splitlines()[0].split(": ")
    assert label in ("negative", "neutral", "positive")
    assert 1 / 3 < float(score) <= 1
    assert shown.splitlines()[1] == "shares fall"
    assert "shares " in shown.splitlines()[2]


def test_the_target_and_the_method_are_those_asked_for(bundle: Path) -> None:
    code, shown = run(
        "A up, B down", "--bundle", str(bundle), "--entity", "B", "--target", "neutral", "--method", "occlusion"
    )
    assert code == 0
    assert shown.startswith("neutral: ")
    assert "occlusion: " in shown


def test_an_entity_that_the_text_does_not_name_is_refused(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "run", None)  # the model does not run for it
    code, shown = run("A up, B down", "--bundle", str(bundle), "--entity", "C")
    assert code == 2
    assert "does not name the entity 'C'" in shown


@pytest.mark.parametrize("method", ["auto", *SUPPORTED_METHODS["sentiment"]])
def test_every_method_that_is_offered_can_be_asked_for(bundle: Path, method: str) -> None:
    assert run("up", "--bundle", str(bundle), "--method", method)[0] == 0


@pytest.mark.parametrize("method", [name for name in METHODS if name not in SUPPORTED_METHODS["sentiment"]])
def test_a_method_that_does_not_beat_chance_cannot_be_asked_for(bundle: Path, method: str) -> None:
    assert run("up", "--bundle", str(bundle), "--method", method)[0] == 2


def test_a_page_is_written(bundle: Path, tmp_path: Path) -> None:
    code, _ = run("shares <i>fall", "--bundle", str(bundle), "--html", str(tmp_path / "page.html"))
    assert code == 0
    assert "<i>" not in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["shares $x^ fall", "股价大涨 👍🏽"])
def test_a_picture_is_written(bundle: Path, tmp_path: Path, text: str) -> None:
    code, shown = run(text, "--bundle", str(bundle), "--png", str(tmp_path / "weights.png"))
    assert code == 0, shown
    assert (tmp_path / "weights.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_without_matplotlib_is_refused_with_the_remedy(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, shown = run("up", "--bundle", str(bundle), "--png", str(tmp_path / "weights.png"))
    assert (code, shown.count("\n")) == (1, 1)
    assert "needs matplotlib, which is missing; run: " in shown


def test_a_text_may_be_named_as_a_command_and_options_may_come_first(bundle: Path) -> None:
    assert run("--bundle", str(bundle), "up") == run("text", "up", "--bundle", str(bundle))
    assert run("text", "report", "--bundle", str(bundle))[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        ([" "], "the text is empty", 1),
        (["up", "--target", "great"], "none of negative, neutral, positive", 2),
        (["\udcff up"], "is not in UTF-8", 2),
    ],
)
def test_what_cannot_be_explained_is_refused_with_one_line(
    bundle: Path, arguments: list[str], said: str, code: int
) -> None:
    found, shown = run(*arguments, "--bundle", str(bundle))
    assert (found, shown.count("\n")) == (code, 1)
    assert said in shown
