from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalogue import attributes as module
from models.catalogue.attributes import (
    MAX_CHOICES,
    MAX_CONDITIONS,
    OPERATORS,
    FilterError,
    Value,
    match_filter,
    update_columns,
)

NAMES = ("price", "colour", "new")
VALUES = st.one_of(
    st.sampled_from(["red", "blue", "红", "", "2011-11-03"]),
    st.booleans(),
    st.sampled_from([0.0, 1.0, -1.0, 2.5]),
    st.integers(-2, 2),
)
ITEMS = st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES), min_size=1, max_size=8)
ONE = st.sampled_from([name for name in OPERATORS if name != "in"])
CONDITIONS = st.one_of(
    VALUES,
    st.dictionaries(ONE, VALUES, min_size=1, max_size=2),
    st.fixed_dictionaries({"in": st.lists(VALUES, min_size=1, max_size=3)}),
)


def kind(value: object) -> type:
    return type(value) if isinstance(value, str | bool) else float


def meets(item: Mapping[str, Value], name: str, operation: str, value: Any) -> bool:
    """By the words of the documentation, one item at a time."""
    if operation == "in":
        return any(meets(item, name, "eq", one) for one in value)
    if operation == "ne":
        return not meets(item, name, "eq", value)
    if name not in item or kind(item[name]) is not kind(value):
        return False
    compare = {"eq": operator.eq, "lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge}
    return bool(compare[operation](item[name], value))


def conditions(stated: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    return [
        (name, operation, value)
        for name, condition in stated.items()
        for operation, value in (condition if isinstance(condition, dict) else {"eq": condition}).items()
    ]


def is_sound(items: list[dict[str, Value]], stated: Mapping[str, Any]) -> bool:
    """Whether each value is of a type that some item has, and has an order where one is needed."""
    for name, operation, value in conditions(stated):
        if operation not in ("eq", "ne", "in") and isinstance(value, bool):
            return False
        for one in value if operation == "in" else [value]:
            if not any(name in item and kind(item[name]) is kind(one) for item in items):
                return False
    return True


@given(ITEMS, st.dictionaries(st.sampled_from(NAMES), CONDITIONS, max_size=3))
def test_a_filter_keeps_what_its_words_say(items: list[dict[str, Value]], stated: dict[str, Any]) -> None:
    columns = update_columns({}, len(items), dict(enumerate(items)))
    live = np.ones(len(items), np.bool_)
    if not is_sound(items, stated):
        with pytest.raises(FilterError):
            match_filter(columns, live, stated)
        return
    expected = [all(meets(item, *condition) for condition in conditions(stated)) for item in items]
    assert match_filter(columns, live, stated).tolist() == expected


@given(ITEMS, st.dictionaries(st.integers(0, 9), st.dictionaries(st.sampled_from(NAMES), VALUES), max_size=6))
def test_columns_that_were_changed_are_those_of_the_changed_items(
    items: list[dict[str, Value]], changes: dict[int, dict[str, Value]]
) -> None:
    before = update_columns({}, len(items), dict(enumerate(items)))
    kept = {name: (column.numbers.copy(), column.codes.copy(), [*column.vocabulary]) for name, column in before.items()}
    rows = max(len(items), 10)
    whole = {row: changes.get(row, items[row] if row < len(items) else {}) for row in range(rows)}
    changed, fresh = update_columns(before, rows, changes), update_columns({}, rows, whole)
    assert set(changed) == set(fresh)
    for name, column in changed.items():
        words, others = list(column.vocabulary), list(fresh[name].vocabulary)
        np.testing.assert_array_equal(column.numbers, fresh[name].numbers)
        assert [repr(words[code]) if code >= 0 else None for code in column.codes.tolist()] == [
            repr(others[code]) if code >= 0 else None for code in fresh[name].codes.tolist()
        ]
        assert column.kinds == fresh[name].kinds
    for name, column in before.items():  # a snapshot that was taken earlier is as it was
        np.testing.assert_array_equal(column.numbers, kept[name][0])
        np.testing.assert_array_equal(column.codes, kept[name][1])
        assert [*map(repr, column.vocabulary)] == [*map(repr, kept[name][2])]


COLUMNS = update_columns({}, 2, {0: {"price": 3.0, "colour": "red"}, 1: {"price": 5.0, "new": True}})
LIVE = np.ones(2, np.bool_)


@pytest.mark.parametrize(
    ("stated", "path", "says"),
    [
        ({"prize": 3}, ("prize",), "there are: colour, new, price"),
        ({"prize": {"lt": 3}}, ("prize",), "No item has this attribute"),
        ({"price": {"below": 3}}, ("price", "below"), "there are eq, ne, lt"),
        ({"price": {"lt": "three"}}, ("price", "lt"), "holds numbers"),
        ({"price": "three"}, ("price",), "holds numbers"),
        ({"colour": {"in": ["red", 3]}}, ("colour", "in"), "holds strings"),
        ({"colour": {"in": "red"}}, ("colour", "in"), "a list of 1 to"),
        ({"colour": {"in": []}}, ("colour", "in"), "a list of 1 to"),
        ({"colour": {"in": ["x"] * (MAX_CHOICES + 1)}}, ("colour", "in"), "a list of 1 to"),
        ({"colour": {"in": [["red"]]}}, ("colour", "in"), "Each value"),
        ({"price": {"lt": float("nan")}}, ("price", "lt"), "finite"),
        ({"price": float("inf")}, ("price",), "finite"),
        ({"price": 10**400}, ("price",), "finite"),
        ({"price": None}, ("price",), "finite"),
        ({"price": [3]}, ("price",), "finite"),
        ({"price": {"eq": {"eq": 3}}}, ("price", "eq"), "finite"),
        ({"new": {"gt": False}}, ("new", "gt"), "no order"),
        ({"price": {}}, ("price",), "a value or an object"),
        ({f"a{number}": 1 for number in range(MAX_CONDITIONS + 1)}, (), "at most"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused_where_it_is_wrong(
    stated: dict[str, Any], path: tuple[str, ...], says: str
) -> None:
    with pytest.raises(FilterError, match=says) as refused:
        match_filter(COLUMNS, LIVE, stated)
    assert refused.value.path == path
    assert not str(refused.value).endswith(".")


def test_a_catalogue_without_items_keeps_nothing_and_refuses_no_attribute() -> None:
    assert match_filter({}, np.zeros(3, np.bool_), {"price": {"lt": 3}}).tolist() == [False] * 3
    with pytest.raises(FilterError):
        match_filter({}, np.zeros(3, np.bool_), {"price": {"below": 3}})


def test_dates_are_compared_as_they_are_written() -> None:
    columns = update_columns({}, 3, {0: {"since": "2011-11-03"}, 1: {"since": "2012-01-01"}, 2: {}})
    assert match_filter(columns, np.ones(3, np.bool_), {"since": {"gte": "2011-12-01"}}).tolist() == [
        False,
        True,
        False,
    ]


def test_an_attribute_that_keeps_changing_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SPARE_WORDS", 5)
    columns = update_columns({}, 2, {0: {"at": "first", "fixed": "red"}, 1: {"at": True}})
    for number in range(100):
        columns = update_columns(columns, 2, {0: {"at": str(number), "fixed": "red"}})
    assert len(columns["at"].vocabulary) <= 10
    assert match_filter(columns, LIVE, {"at": "99", "fixed": "red"}).tolist() == [True, False]
    assert match_filter(columns, LIVE, {"at": True}).tolist() == [False, True]
