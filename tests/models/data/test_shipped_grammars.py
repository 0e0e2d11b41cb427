"""Every grammar that ships: it can be filled, its labels vary, and its two sides share no passage."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache

import pytest

from models.data.grammar import fill_template, generate
from models.data.grammar_file import GRAMMARS, PLACEHOLDER, Grammar, load_grammars
from models.tasks import SENTIMENT

pytestmark = pytest.mark.slow

NAMES = sorted(path.stem for path in GRAMMARS.glob("*.toml"))
SHARED_WORDS, SHARED_CHARACTERS = 8, 14
MIN_HELD_OUT_TEMPLATES = 2


@cache
def grammars() -> dict[str, Grammar]:
    return {grammar.name: grammar for grammar in load_grammars()}


@cache
def trained_passages(language: str) -> set[str]:
    rows = (generate(grammar, 0, 5, held_out=False) for grammar in grammars().values() if grammar.language == language)
    return {passage for row in {row.text for part in rows for row in part} for passage in passages(row, language)}


def passages(text: str, language: str) -> Iterator[str]:
    """Yield every run of eight words, or of fourteen Chinese characters."""
    words = re.findall(r"[\u4e00-\u9fff]" if language == "zh" else r"[^\W_]+", text.casefold())
    length = SHARED_CHARACTERS if language == "zh" else SHARED_WORDS
    yield from (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))


def literal_parts(grammar: Grammar) -> Iterator[str]:
    """Yield the text between placeholders of held-out templates, and held-out examples."""
    for row in (*grammar.templates, *grammar.examples):
        if row.held_out:
            yield from PLACEHOLDER.sub("\0", row.text).split("\0")


def test_there_are_grammars_of_both_languages() -> None:
    assert {grammar.language for grammar in grammars().values()} == {"en", "zh"}


@pytest.mark.parametrize("name", NAMES)
def test_every_template_can_be_filled_and_answers_differ(name: str) -> None:
    grammar = grammars()[name]
    for number, template in enumerate(grammar.templates):
        rows = list(fill_template(grammar, template, f"{name}/{number}", 0, 20, template.held_out))
        assert rows, template.text
        for row in rows:
            assert row.label in SENTIMENT.labels
            assert "{" not in row.text
            assert row.entity is None or row.entity.casefold() in row.text.casefold()
        if template.factors:
            assert {row.label for row in rows} >= {"positive", "negative"}, template.text
        asked = {entity for entity, _ in template.rules}
        rows_by_group = Counter(row.group for row in rows)
        assert all(count % len(asked) == 0 for count in rows_by_group.values())


@pytest.mark.parametrize("name", NAMES)
def test_the_kinds_of_templates_have_held_out_ones(name: str) -> None:
    templates = grammars()[name].templates
    held_out = Counter(template.kind for template in templates if template.held_out)
    kinds = {template.kind for template in templates}
    assert not {kind for kind in kinds if held_out[kind] < MIN_HELD_OUT_TEMPLATES}


@pytest.mark.parametrize("name", NAMES)
def test_no_training_row_shares_a_passage_with_the_held_out_side(name: str) -> None:
    grammar = grammars()[name]
    assert not shared(literal_parts(grammar), trained_passages(grammar.language), grammar.language)


def shared(texts: Iterable[str], trained: set[str], language: str) -> list[str]:
    return [text for text in texts if not trained.isdisjoint(passages(text, language))]


def test_a_shared_passage_is_found() -> None:
    text = "nobody at the front desk could tell us when it opens"
    assert shared([f"Sadly, {text}!"], set(passages(text, "en")), "en")
    assert not shared(["nobody at the front desk could tell them"], set(passages(text, "en")), "en")
    assert shared(["今天前台的人都说不清楚几点开门"], set(passages("前台的人都说不清楚几点开门呢", "zh")), "zh") == []
    assert shared(["今天前台的人都说不清楚几点开门呢"], set(passages("前台的人都说不清楚几点开门呢", "zh")), "zh")
