"""Attributes of items as columns, and filters on them.

An attribute is a string, a number or a boolean. A column holds its value for every row, so a condition is one
comparison of arrays. This module does not know where items are stored.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.names import list_nearest

Value = str | float | bool
Attributes = Mapping[str, Value]
Mask = NDArray[np.bool_]

ORDER_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}
OPERATORS = ("eq", "ne", *ORDER_OPERATORS, "in")
MAX_CONDITIONS = 32
MAX_CHOICES = 1_000
MAX_UNUSED_WORDS = 1_024
"""Words beyond two per row that a column's vocabulary may hold before unused words are dropped."""

_TYPE_NAMES: dict[type, str] = {float: "numbers", str: "strings", bool: "true or false"}


class FilterError(ValueError):
    """A filter that cannot be applied.

    The message is a sentence without its full stop. `path` holds the keys that lead to the fault.
    """

    def __init__(self, message: str, *path: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One attribute of every row.

    `numbers` (rows,) is nan where the value is no number. `codes` (rows,) are codes of `vocabulary`, or -1 where the
    value is neither a string nor a boolean. `value_types` are the types of the values that rows have.
    """

    numbers: NDArray[np.float64]
    codes: NDArray[np.int32]
    vocabulary: Mapping[str | bool, int]
    value_types: frozenset[type]

    def equals(self, value: Value) -> Mask:
        if isinstance(value, str | bool):
            return np.asarray(self.codes == self.vocabulary.get(value, -2))
        return np.asarray(self.numbers == value)

    def compare(self, operation: str, value: str | float) -> Mask:
        """Return the rows that stand in this order to the value.

        Strings are ordered by code point, so dates in ISO 8601 are in chronological order.
        """
        comparison = ORDER_OPERATORS[operation]
        if isinstance(value, str):
            table = [isinstance(word, str) and comparison(word, value) for word in self.vocabulary]
            return np.array([*table, False])[self.codes]  # code -1 reads the last entry
        return np.asarray(comparison(self.numbers, value))


Columns = Mapping[str, Column]


def update_columns(columns: Columns, rows: int, changes: Mapping[int, Attributes]) -> dict[str, Column]:
    """Return new columns of `rows` rows, at least as many as before.

    Each row of `changes` has exactly the attributes listed there. An attribute that no row has any more loses its
    column.
    """
    changed_rows = np.fromiter(changes, np.int64, len(changes))
    drafts = {name: _ColumnDraft.from_column(column, rows) for name, column in columns.items()}
    for draft in drafts.values():
        draft.numbers[changed_rows] = np.nan
        draft.codes[changed_rows] = -1
    for row, attributes in changes.items():
        for name, value in attributes.items():
            if name not in drafts:
                drafts[name] = _ColumnDraft(np.full(rows, np.nan), np.full(rows, -1, np.int32), {})
            drafts[name].write(row, value)
    return {name: column for name, draft in drafts.items() if (column := draft.to_column()).value_types}


@dataclass(slots=True)
class _ColumnDraft:
    """A column that is still being written."""

    numbers: NDArray[np.float64]
    codes: NDArray[np.int32]
    vocabulary: dict[str | bool, int]

    @classmethod
    def from_column(cls, column: Column, rows: int) -> _ColumnDraft:
        added = rows - len(column.codes)
        numbers = np.concatenate([column.numbers, np.full(added, np.nan)])
        codes = np.concatenate([column.codes, np.full(added, -1, np.int32)])
        return cls(numbers, codes, dict(column.vocabulary))

    def write(self, row: int, value: Value) -> None:
        if isinstance(value, str | bool):
            self.codes[row] = self.vocabulary.setdefault(value, len(self.vocabulary))
        else:
            self.numbers[row] = value

    def to_column(self) -> Column:
        if len(self.vocabulary) > 2 * len(self.codes) + MAX_UNUSED_WORDS:
            self._drop_unused_words()
        used = np.bincount(self.codes + 1, minlength=len(self.vocabulary) + 1)[1:] > 0
        boolean_codes = [code for word, code in self.vocabulary.items() if isinstance(word, bool)]
        value_types: set[type] = {bool} if used[boolean_codes].any() else set()
        used[boolean_codes] = False
        value_types |= {str} if used.any() else set()
        value_types |= set() if np.isnan(self.numbers).all() else {float}
        return Column(self.numbers, self.codes, self.vocabulary, frozenset(value_types))

    def _drop_unused_words(self) -> None:
        """Drop the words that no row has, so that the vocabulary of a changing attribute stays bounded."""
        used_codes = np.unique(self.codes[self.codes >= 0])
        words = list(self.vocabulary)
        self.vocabulary = {words[old]: new for new, old in enumerate(used_codes.tolist())}
        self.codes = np.where(self.codes < 0, -1, np.searchsorted(used_codes, self.codes)).astype(np.int32)


def match_filter(columns: Columns, active: Mask, conditions: Mapping[str, object]) -> Mask:
    """Return the active rows that meet every condition.

    Conditions are written `{"price": {"gte": 2, "lt": 5}, "colour": "red"}`. A row without the attribute, or with a
    value of another type, meets no condition except `ne`. Raises FilterError for a malformed condition. An attribute
    that no row has is treated as a mistake and raises too. So does a value of a type that no row has.
    """
    if len(conditions) > MAX_CONDITIONS:
        raise FilterError(f"A filter has at most {MAX_CONDITIONS} attributes")
    mask, has_rows = active, bool(active.any())
    for name, condition in conditions.items():
        comparisons = condition if isinstance(condition, Mapping) else {"eq": condition}
        if not comparisons:
            raise FilterError(f"The condition should be a value or an object of {', '.join(OPERATORS)}", name)
        for operation, value in comparisons.items():
            path = (name, str(operation)) if comparisons is condition else (name,)
            _validate_comparison(operation, value, path)
            if not has_rows:
                continue
            column = _find_column(columns, name)
            for choice in value if isinstance(value, list) else [value]:
                _validate_type(column, choice, path)
            mask = mask & _compare(column, operation, value)
    return mask


def _compare(column: Column, operation: str, value: Any) -> Mask:
    if operation == "eq":
        return column.equals(value)
    if operation == "ne":
        return ~column.equals(value)
    if operation == "in":
        return np.asarray(np.logical_or.reduce([column.equals(choice) for choice in value]))
    return column.compare(operation, value)


def _validate_comparison(operation: object, value: object, path: tuple[str, ...]) -> None:
    if operation not in OPERATORS:
        raise FilterError(f"There is no such operator; use one of {', '.join(OPERATORS)}", *path)
    if operation == "in":
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_CHOICES:
            raise FilterError(f"The value of 'in' should be a list of 1 to {MAX_CHOICES} values", *path)
        if not all(map(_is_value, value)):
            raise FilterError("Each value should be a string, a finite number, true or false", *path)
    elif not _is_value(value):
        raise FilterError("The value should be a string, a finite number, true or false", *path)
    elif operation in ORDER_OPERATORS and isinstance(value, bool):
        raise FilterError("True and false have no order; compare them with eq, ne or in", *path)


def _is_value(value: object) -> bool:
    if isinstance(value, str | bool):
        return True
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def _find_column(columns: Columns, name: str) -> Column:
    if name not in columns:
        listed = list_nearest(columns, name) or "none"
        raise FilterError(f"No item has this attribute; the attributes are: {listed}", name)
    return columns[name]


def _validate_type(column: Column, value: object, path: tuple[str, ...]) -> None:
    if (type(value) if isinstance(value, str | bool) else float) not in column.value_types:
        held = " and ".join(name for value_type, name in _TYPE_NAMES.items() if value_type in column.value_types)
        raise FilterError(f"No item has a value of this type here; this attribute holds {held}", *path)
