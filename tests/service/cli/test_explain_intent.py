from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from tests.support.tiny_bundle import tiny_intent_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_intent_bundle(tmp_path_factory.mktemp("bundle"))


def run(bundle: Path, *arguments: str) -> tuple[int, str]:
    shelf = str(bundle.parent / "shelf")
    result = CliRunner().invoke(app, ["explain", "intent", *arguments, "--bundle", str(bundle), "--data-dir", shelf])
    return result.exit_code, result.output


def test_the_likeliest_intent_is_shown_with_the_weights_of_the_words(bundle: Path) -> None:
    code, shown = run(bundle, "bbbb bb", "--label-set", "letters")
    assert code == 0, shown
    intent, confidence = shown.splitlines()[0].split(": ")
    assert intent == "b"
    assert 0 < float(confidence) <= 1
    assert shown.splitlines()[1] == "bbbb bb"
    assert "bbbb " in shown.splitlines()[2]


def test_the_label_set_may_come_from_the_environment(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_LABEL_SET", "digits")
    code, shown = run(bundle, "1111", "--target", "2", "--method", "occlusion")
    assert code == 0, shown
    assert shown.startswith("2: ")
    assert "occlusion: " in shown


def test_a_page_is_written(bundle: Path, tmp_path: Path) -> None:
    assert run(bundle, "aa <i>", "--label-set", "letters", "--html", str(tmp_path / "page.html"))[0] == 0
    assert "<i>" not in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said", "code"),
    [
        ([" ", "--label-set", "letters"], "the text is empty", 1),
        (
            ["aa", "--label-set", "nope"],
            "no label set 'nope'; there are digits, letters. Data folder (HEED_DATA_DIR): ",
            2,
        ),
        (["aa", "--label-set", "letters", "--target", "z"], "none of the 3 intents of letters", 2),
        (["\udcff", "--label-set", "letters"], "is not in UTF-8", 2),
    ],
)
def test_what_cannot_be_explained_is_refused_with_one_line(
    bundle: Path, arguments: list[str], said: str, code: int
) -> None:
    found, shown = run(bundle, *arguments)
    assert (found, shown.count("\n")) == (code, 1), shown
    assert said in shown
