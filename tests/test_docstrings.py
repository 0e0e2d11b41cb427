"""Docstrings are short, plain English: the rules of CONTRIBUTING that ruff does not know."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

from tests.docs.markdown import ROOT, count_words, split_sentences

pytestmark = pytest.mark.slow

MODULES = sorted(path for package in ("models", "service") for path in (ROOT / package).rglob("*.py"))
MAX_SENTENCE_WORDS = 30
MAX_MEDIAN_WORDS = 16
FRAGMENT = re.compile(r"(Of|By|What|As|How|Whether|Those)\b")


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and text of every docstring, also of those below constants and fields."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def sentences(text: str) -> list[str]:
    """Split running text; a list item or an indented block is a paragraph of its own."""
    paragraphs = re.split(r"\n\s*\n|\n\s*(?=[-*] )|\n(?=\s*\w+: )", text)
    return [sentence for part in paragraphs for sentence in split_sentences(" ".join(part.split())) if sentence]


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_docstrings_are_short_sentences(path: Path) -> None:
    for line, text in docstrings(path):
        for sentence in sentences(text):
            words = count_words(sentence)
            assert words <= MAX_SENTENCE_WORDS, f"{label(path)}:{line} has a sentence of {words} words: {sentence}"


@pytest.mark.parametrize("path", MODULES, ids=label)
def test_docstrings_name_a_thing_or_start_with_a_verb(path: Path) -> None:
    for line, text in docstrings(path):
        assert not FRAGMENT.match(text.lstrip()), f"{label(path)}:{line} starts with a fragment: {text.strip()[:60]}"


@pytest.mark.slow
def test_the_median_sentence_is_short() -> None:
    lengths = [count_words(one) for path in MODULES for _, text in docstrings(path) for one in sentences(text)]
    assert median(lengths) <= MAX_MEDIAN_WORDS
