from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service.cli.main import app
from tests.support.tiny_bundle import tiny_bundle, tiny_intent_bundle

NASTY = '<img src=x onerror=alert(1)> "up" & </p><script>alert(2)</script>'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"))


def report(
    bundle: Path, rows: list[object], folder: Path, name: str = "texts.jsonl", more: Sequence[str] = ()
) -> tuple[int, str]:
    content = "\n".join(json.dumps(row) for row in rows).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    arguments = [
        "explain",
        "report",
        "--data",
        str(folder / name),
        "--out",
        str(folder / "out"),
        "--bundle",
        str(bundle),
        *more,
    ]
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.slow
def test_one_page_is_written_that_needs_nothing_else(bundle: Path, tmp_path: Path) -> None:
    rows: list[object] = [
        {"text": f"{word} {word} {NASTY}", "label": label, "entity": "<b>up"}
        for word, label in (("up", "bullish"), ("down", "negative"), ("flat", "neutral")) * 4
    ]
    code, shown = report(bundle, rows, tmp_path, "texts.jsonl.gz")
    assert code == 0, shown
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    assert not {"img", "script", "link", "iframe", "b"} & {tag for tag, _ in tags.found}
    assert not any({"src", "href", "onerror"} & set(attributes) for _, attributes in tags.found)
    for title in ("Words that drive each answer", "What heads do", "Heads that can be removed", "The surest mistakes"):
        assert f">{title}</h" in page
    assert re.search(r"\d+ of 8 heads can be removed together so that as many answers", page)


def test_texts_without_labels_say_nothing_of_mistakes(bundle: Path, tmp_path: Path) -> None:
    code, shown = report(bundle, [{"text": "up up"}, {"text": "down"}, {"text": "x"}], tmp_path)
    assert code == 0, shown
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "none has a label" in page
    assert "mistakes</h3>" not in page
    assert "at most 1 % of answers change" in page


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "it holds no texts"),
        ([{"text": "up"}, {"text": " "}], 'line 2: its "text" is empty'),
        ([{"text": "up", "label": "great"}], "line 1: its label 'great' is none of negative, neutral, positive"),
        ([{"text": "up", "label": ["positive"]}], "line 1: its label ['positive'] is none of"),
        ([{"text": "up", "entity": ""}], 'line 1: its "entity" is empty'),
        ([["up"]], "line 1: it is not an object"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_one_line(
    bundle: Path, tmp_path: Path, rows: list[object], said: str
) -> None:
    code, shown = report(bundle, rows, tmp_path)
    assert (code, shown.count("\n")) == (1, 1)
    assert said in shown


@pytest.fixture(scope="module")
def intents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_intent_bundle(tmp_path_factory.mktemp("intents"))


@pytest.mark.slow
def test_intents_are_told_of_by_the_words_of_all_turns(intents: Path, tmp_path: Path) -> None:
    before = {"speaker": "agent", "text": f"cc? {NASTY}"}
    rows: list[object] = [
        {"turns": [before, {"speaker": "customer", "text": f"{letter * 3} bb"}], "label": label}
        for letter, label in (("a", "a"), ("b", "a"), ("c", "b")) * 3
    ]
    code, shown = report(intents, rows, tmp_path, more=["--label-set", "letters"])
    assert code == 0, shown
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<h1>intent, letters 0.0.1 on texts.jsonl</h1>" in page
    assert "9 texts; 9 have a label" in page
    tags = Tags()
    tags.feed(page)
    assert not {"img", "script"} & {tag for tag, _ in tags.found}
    mistakes = page.split("The surest mistakes")[1]
    assert mistakes.count('class="text"') == 2 * mistakes.count("<section>") > 0


def test_a_head_of_ones_own_is_told_of(intents: Path, tmp_path: Path) -> None:
    head = intents / "heads" / "digits.head.safetensors"
    code, shown = report(intents, [{"text": "111"}, {"text": "4"}], tmp_path, more=["--label-set", str(head)])
    assert code == 0, shown
    assert "intent, digits" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "rows", "said", "code"),
    [
        ([], [{"text": "a"}], "name a label set of intent with --label-set (digits, letters)", 2),
        (["--label-set", "none"], [{"text": "a"}], "(digits, letters)", 2),
        (["--label-set", "none.head.safetensors"], [{"text": "a"}], "none.head.safetensors: it cannot be read", 1),
        (["--label-set", "letters"], [{"text": "a", "label": "z"}], "line 1: its label 'z' is none of a, b, c", 1),
        (["--label-set", "letters"], [{"turns": []}], "line 1: it has no turn of the customer", 1),
        (["--label-set", "letters"], [], "it holds no texts", 1),
    ],
)
def test_what_intents_cannot_be_told_of_is_refused_with_one_line(
    intents: Path, tmp_path: Path, more: list[str], rows: list[object], said: str, code: int
) -> None:
    found, shown = report(intents, rows, tmp_path, more=more)
    assert (found, shown.count("\n")) == (code, 1)
    assert said in shown
