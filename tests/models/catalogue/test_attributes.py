from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.catalogue.attributes import (
    MAX_CHOICES,
    MAX_CONDITIONS,
    MAX_UNUSED_WORDS,
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
COMPARISONS = st.sampled_from([name for name in OPERATORS if name != "in"])
CONDITIONS = st.one_of(
    VALUES,
    st.dictionaries(COMPARISONS, VALUES, min_size=1, max_size=2),
    st.fixed_dictionaries({"in": st.lists(VALUES, min_size=1, max_size=3)}),
)


def value_type(value: object) -> type:
    return type(value) if isinstance(value, str | bool) else float


def meets(item: Mapping[str, Value], name: str, operation: str, value: Any) -> bool:
    """Apply a condition to one item, as the documentation defines it."""
    if operation == "in":
        return any(meets(item, name, "eq", choice) for choice in value)
    if operation == "ne":
        return not meets(item, name, "eq", value)
    if name not in item or value_type(item[name]) is not value_type(value):
        return False
    compare = {"eq": operator.eq, "lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge}
    return bool(compare[operation](item[name], value))


def conditions(query: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    return [
        (name, operation, value)
        for name, condition in query.items()
        for operation, value in (condition if isinstance(condition, dict) else {"eq": condition}).items()
    ]


def is_valid(items: list[dict[str, Value]], query: Mapping[str, Any]) -> bool:
    """Return whether each value has a type that some item has, and an order where the operator needs one."""
    for name, operation, value in conditions(query):
        if operation not in ("eq", "ne", "in") and isinstance(value, bool):
            return False
        for choice in value if operation == "in" else [value]:
            if not any(name in item and value_type(item[name]) is value_type(choice) for item in items):
                return False
    return True


@given(ITEMS, st.dictionaries(st.sampled_from(NAMES), CONDITIONS, max_size=3))
def test_filter_selects_the_items_that_meet_every_condition(
    items: list[dict[str, Value]], query: dict[str, Any]
) -> None:
    columns = update_columns({}, len(items), dict(enumerate(items)))
    active = np.ones(len(items), np.bool_)
    if not is_valid(items, query):
        with pytest.raises(FilterError):
            match_filter(columns, active, query)
        return
    expected = [all(meets(item, *condition) for condition in conditions(query)) for item in items]
    assert match_filter(columns, active, query).tolist() == expected


@given(ITEMS, st.dictionaries(st.integers(0, 9), st.dictionaries(st.sampled_from(NAMES), VALUES), max_size=6))
def test_updated_columns_equal_columns_built_anew(
    items: list[dict[str, Value]], changes: dict[int, dict[str, Value]]
) -> None:
    before = update_columns({}, len(items), dict(enumerate(items)))
    copies = {
        name: (column.numbers.copy(), column.codes.copy(), [*column.vocabulary]) for name, column in before.items()
    }
    rows = max(len(items), 10)
    contents = {row: changes.get(row, items[row] if row < len(items) else {}) for row in range(rows)}
    updated, rebuilt = update_columns(before, rows, changes), update_columns({}, rows, contents)
    assert set(updated) == set(rebuilt)
    for name, column in updated.items():
        words, rebuilt_words = list(column.vocabulary), list(rebuilt[name].vocabulary)
        np.testing.assert_array_equal(column.numbers, rebuilt[name].numbers)
        assert [repr(words[code]) if code >= 0 else None for code in column.codes.tolist()] == [
            repr(rebuilt_words[code]) if code >= 0 else None for code in rebuilt[name].codes.tolist()
        ]
        assert column.value_types == rebuilt[name].value_types
    for name, column in before.items():  # an earlier snapshot does not change
        np.testing.assert_array_equal(column.numbers, copies[name][0])
        np.testing.assert_array_equal(column.codes, copies[name][1])
        assert [*map(repr, column.vocabulary)] == [*map(repr, copies[name][2])]


COLUMNS = update_columns({}, 2, {0: {"price": 3.0, "colour": "red"}, 1: {"price": 5.0, "new": True}})
ACTIVE = np.ones(2, np.bool_)


@pytest.mark.parametrize(
    ("query", "path", "message"),
    [
        ({"prize": 3}, ("prize",), "the attributes are: price, colour, new"),
        ({"colors": 3}, ("colors",), "the attributes are: colour, new, price"),
        ({"prize": {"lt": 3}}, ("prize",), "No item has this attribute"),
        ({"price": {"below": 3}}, ("price", "below"), "use one of eq, ne, lt"),
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
        ({f"a{index}": 1 for index in range(MAX_CONDITIONS + 1)}, (), "at most"),
    ],
)
def test_invalid_filter_is_refused_with_the_path_of_its_fault(
    query: dict[str, Any], path: tuple[str, ...], message: str
) -> None:
    with pytest.raises(FilterError, match=message) as refused:
        match_filter(COLUMNS, ACTIVE, query)
    assert refused.value.path == path
    assert not str(refused.value).endswith(".")


def test_filter_of_an_empty_catalogue_accepts_any_attribute() -> None:
    assert match_filter({}, np.zeros(3, np.bool_), {"price": {"lt": 3}}).tolist() == [False] * 3
    with pytest.raises(FilterError):
        match_filter({}, np.zeros(3, np.bool_), {"price": {"below": 3}})


def test_iso_dates_are_compared_in_chronological_order() -> None:
    columns = update_columns({}, 3, {0: {"since": "2011-11-03"}, 1: {"since": "2012-01-01"}, 2: {}})
    assert match_filter(columns, np.ones(3, np.bool_), {"since": {"gte": "2011-12-01"}}).tolist() == [
        False,
        True,
        False,
    ]


def test_vocabulary_of_a_changing_attribute_stays_bounded() -> None:
    columns = update_columns({}, 2, {0: {"at": "first", "fixed": "red"}, 1: {"at": True}})
    edits = MAX_UNUSED_WORDS + 100
    for edit in range(edits):
        columns = update_columns(columns, 2, {0: {"at": str(edit), "fixed": "red"}})
    assert len(columns["at"].vocabulary) <= MAX_UNUSED_WORDS + 4
    assert match_filter(columns, ACTIVE, {"at": str(edits - 1), "fixed": "red"}).tolist() == [True, False]
    assert match_filter(columns, ACTIVE, {"at": True}).tolist() == [False, True]
