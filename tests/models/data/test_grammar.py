"""Rows made from small grammars: labels by construction, counterparts, and two sides that share nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.data.grammar import GrammarExample, generate
from models.data.grammar_file import Grammar, GrammarError, load_grammars, read_grammar

SLOTS = """
language = "en"
[slots]
company = ["Norvik", "Halden & Brook", "Tarmo Oyj", "Redgate", "Quillon", "Norvik Foods"]
[slots.quantity]
"+" = ["sales", "orders"]
"-" = ["costs", "debts"]
[slots.move]
"+" = ["rose {percent}", "climbed", "grew", "jumped", "went up"]
"-" = ["fell {percent}", "dropped", "shrank", "sank", "went down"]
"""

DIRECTION = """
[[templates]]
kind = "direction"
text = "{^quantity} {move} at {company} on {day}"
label = "quantity*move"
"""


def grammar(folder: Path, content: str, name: str = "small.toml") -> Grammar:
    (folder / name).write_text(content, encoding="utf-8")
    return read_grammar(folder / name)


def groups(rows: list[GrammarExample]) -> dict[str, list[GrammarExample]]:
    found: dict[str, list[GrammarExample]] = {}
    for row in rows:
        found.setdefault(row.group, []).append(row)
    return found


def test_counterparts_differ_in_their_signs_alone(tmp_path: Path) -> None:
    rows = generate(grammar(tmp_path, SLOTS + DIRECTION), 0, 3, held_out=False)
    assert len(groups(rows)) == 3
    for group in groups(rows).values():
        assert len(group) == 4
        assert len({row.text.partition(" at ")[2] for row in group}) == 1
        for row in group:
            is_good = row.text.lower().startswith(("sales", "orders"))
            is_more = any(word in row.text for word in ("rose", "climbed", "grew", "jumped", "went up"))
            assert row.label == ("positive" if is_good == is_more else "negative")
            assert row.text[0].isupper()
            assert (row.kind, row.dataset, row.language) == ("direction", "small", "en")


def test_rows_follow_from_the_seed(tmp_path: Path) -> None:
    small = grammar(tmp_path, SLOTS + DIRECTION)
    assert generate(small, 7, 5, held_out=False) == generate(small, 7, 5, held_out=False)
    assert generate(small, 7, 5, held_out=False) != generate(small, 8, 5, held_out=False)


def test_the_two_sides_share_no_template_and_no_held_out_value(tmp_path: Path) -> None:
    measured = DIRECTION.replace(" on {day}", ", said {company2}") + "held_out = true\n"
    examples = '[[examples]]\nkind = "direction"\ntext = "{}"\nlabel = "neutral"\n'
    content = SLOTS + DIRECTION + measured + examples.format("A fact") + examples.format("B fact") + "held_out = true\n"
    small = grammar(tmp_path, content)
    trained, held_out = (generate(small, 0, 30, held_out=side) for side in (False, True))
    companies = {row.text.partition(" at ")[2].partition(" on ")[0] for row in trained if row.label != "neutral"}
    (company,) = small.held_out_values & set(small.slots["company"][""])
    assert companies == set(small.slots["company"][""]) - {company}
    assert all(company in row.text for row in held_out if row.label != "neutral")
    moves = {value for values in small.slots["move"].values() for value in values} & small.held_out_values
    assert len(moves) == 2
    assert not any(move.partition(" {")[0] in row.text for move in moves for row in trained)
    assert [row.text for row in trained if row.label == "neutral"] == ["A fact"]
    assert [row.text for row in held_out if row.label == "neutral"] == ["B fact"]


def test_slots_with_few_values_hold_none_out(tmp_path: Path) -> None:
    small = grammar(tmp_path, SLOTS + DIRECTION)
    assert not small.held_out_values & {"sales", "orders", "costs", "debts"}
    assert len(small.held_out_values) == 3


def test_an_entity_is_asked_about_once_each_and_never_twice_the_same(tmp_path: Path) -> None:
    asked = '[[templates]]\nkind = "roles"\ntext = "{company} sued {company2}"\n'
    rows = generate(
        grammar(tmp_path, SLOTS + asked + 'ask = { company = "neutral", company2 = "negative" }'), 0, 40, held_out=False
    )
    for group in groups(rows).values():
        first, second = group
        assert first.text == second.text == f"{first.entity} sued {second.entity}"
        assert (first.label, second.label) == ("neutral", "negative")
        names = [row.entity or "" for row in group]
        assert names[0] not in names[1]
        assert names[1] not in names[0]


def test_figures_stand_in_the_order_that_the_label_says(tmp_path: Path) -> None:
    figures = (
        '[[templates]]\nkind = "figures"\ntext = "{quantity-} from {first:count} to {second:count}"\nlabel = "-order"\n'
    )
    rows = generate(grammar(tmp_path, SLOTS + figures), 0, 20, held_out=False)
    for row in rows:
        first, second = (int(number.replace(",", "")) for number in row.text.partition("from ")[2].split(" to "))
        assert row.label == ("negative" if second > first else "positive")
    assert {len(group) for group in groups(rows).values()} == {2}


def test_a_template_without_variety_is_not_repeated(tmp_path: Path) -> None:
    fact = '[[templates]]\nkind = "facts"\ntext = "A fact."\nlabel = "neutral"\n'
    assert len(generate(grammar(tmp_path, SLOTS + fact), 0, 20, held_out=False)) == 1


def test_a_value_held_out_in_one_file_is_held_out_in_all_of_its_language(tmp_path: Path) -> None:
    first = grammar(tmp_path, SLOTS + DIRECTION, "a.toml")
    other = SLOTS.replace('"Norvik", ', "").replace(', "Redgate"', "")
    grammar(tmp_path, other + DIRECTION, "b.toml")
    grammar(tmp_path, SLOTS.replace('"en"', '"zh"').replace("climbed", "上升"), "c.toml")
    a, b, c = load_grammars(tmp_path)
    assert first.held_out_values <= a.held_out_values == b.held_out_values
    assert "上升" not in a.held_out_values
    assert c.language == "zh"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("language =", "small.toml"),
        ('language = "fr"', "language"),
        ('language = "en"\nslot = 1', "unknown keys slot"),
        ('language = "en"\n[slots]\ncompany2 = ["a"]', "slot company2"),
        ('language = "en"\n[slots]\norder = ["a"]', "slot order"),
        ('language = "en"\n[slots]\nx = ["a", "a"]', "'a' stands there twice"),
        ('language = "en"\n[slots]\nx = []', "slot x"),
        ('language = "en"\n[slots.x]\nup = ["a"]', "signs"),
        ('language = "en"\n[slots]\nx = ["at {y}"]', "there is no slot y"),
        (SLOTS + '[slots.z]\n"+" = ["{move}"]\n"-" = ["b"]', "value '{move}'"),
        (SLOTS + DIRECTION + "colour = 1", "template 1 .*unknown keys colour"),
        (SLOTS + DIRECTION + 'ask = { company = "neutral" }', "either label or ask"),
        (SLOTS + DIRECTION.replace("label", "# label"), "either label or ask"),
        (SLOTS + DIRECTION.replace("{day}", "{wat}"), "there is no slot wat"),
        (SLOTS + DIRECTION.replace("{day}", "{Day}"), "brace"),
        (SLOTS + DIRECTION.replace("{day}", "{first:day}"), "first: goes with"),
        (SLOTS + DIRECTION.replace("{company}", "{company+}"), "no sign [+]"),
        (SLOTS + DIRECTION.replace("quantity*move", "quantity*order"), "'order' is neither"),
        (SLOTS + DIRECTION.replace("quantity*move", "company"), "'company' is neither"),
        (SLOTS + DIRECTION.replace("quantity*move", "bullish"), "'bullish' is neither"),
        (SLOTS + DIRECTION.replace("{day}", "{move2} {move3} {move4} {move5} {move6}"), "fewer than 6 values"),
        (SLOTS + DIRECTION.replace('label = "quantity*move"', 'ask = { rival = "neutral" }'), "'rival' is not in"),
        (SLOTS + '[[examples]]\nkind = "a"\ntext = "b"\nlabel = "quantity"', "example 1 .*'quantity' is neither"),
        (SLOTS + '[[examples]]\nkind = "a"\ntext = "b"\nask = { c = "neutral" }', "'c' is not in"),
        (SLOTS + '[[examples]]\nkind = "a"\nlabel = "neutral"', "a kind and a text"),
    ],
)
def test_a_mistake_is_refused_with_its_place(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message) as refusal:
        grammar(tmp_path, content)
    assert str(refusal.value).startswith("small.toml")
