"""Attributes of items as columns, and filters on them.

An attribute is a string, a number or true/false; a column holds it for every row, so that a condition is one comparison
of arrays. Knows nothing of where items are kept.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Value = str | float | bool
Attributes = Mapping[str, Value]
Mask = NDArray[np.bool_]

ORDERED: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}
OPERATORS = ("eq", "ne", *ORDERED, "in")
MAX_CONDITIONS = 32
MAX_CHOICES = 1_000
_NAMED = 20
_SPARE_WORDS = 1_024
_KINDS: dict[type, str] = {float: "numbers", str: "strings", bool: "true or false"}


class FilterError(ValueError):
    """A filter that cannot be applied: a sentence without its full stop, and the keys that lead to the fault."""

    def __init__(self, message: str, *path: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """One attribute of every row: `numbers` (rows,), nan where it is none; `codes` (rows,) of `vocabulary`, else -1.

    `kinds` are the types of the values that rows have.
    """

    numbers: NDArray[np.float64]
    codes: NDArray[np.int32]
    vocabulary: Mapping[str | bool, int]
    kinds: frozenset[type]

    def equal(self, value: Value) -> Mask:
        if isinstance(value, str | bool):
            return np.asarray(self.codes == self.vocabulary.get(value, -2))
        return np.asarray(self.numbers == value)

    def ordered(self, name: str, value: str | float) -> Mask:
        """Strings are in the order of their code points, so that dates as ISO 8601 writes them are in theirs."""
        compare = ORDERED[name]
        if isinstance(value, str):
            table = [isinstance(word, str) and compare(word, value) for word in self.vocabulary]
            return np.array([*table, False])[self.codes]  # -1 is the last
        return np.asarray(compare(self.numbers, value))


Columns = Mapping[str, Column]


def update_columns(columns: Columns, rows: int, changes: Mapping[int, Attributes]) -> dict[str, Column]:
    """New columns of `rows` rows, at least as many as before, in which those of `changes` have these alone.

    An attribute that no row has any longer has no column.
    """
    places = np.fromiter(changes, np.int64, len(changes))
    drafts = {name: _Draft.of(column, rows) for name, column in columns.items()}
    for draft in drafts.values():
        draft.numbers[places] = np.nan
        draft.codes[places] = -1
    for row, attributes in changes.items():
        for name, value in attributes.items():
            if name not in drafts:
                drafts[name] = _Draft(np.full(rows, np.nan), np.full(rows, -1, np.int32), {})
            drafts[name].write(row, value)
    return {name: column for name, draft in drafts.items() if (column := draft.column()).kinds}


@dataclass(slots=True)
class _Draft:
    """A column that is still being written."""

    numbers: NDArray[np.float64]
    codes: NDArray[np.int32]
    vocabulary: dict[str | bool, int]

    @classmethod
    def of(cls, column: Column, rows: int) -> _Draft:
        more = rows - len(column.codes)
        numbers = np.concatenate([column.numbers, np.full(more, np.nan)])
        codes = np.concatenate([column.codes, np.full(more, -1, np.int32)])
        return cls(numbers, codes, dict(column.vocabulary))

    def write(self, row: int, value: Value) -> None:
        if isinstance(value, str | bool):
            self.codes[row] = self.vocabulary.setdefault(value, len(self.vocabulary))
        else:
            self.numbers[row] = value

    def column(self) -> Column:
        if len(self.vocabulary) > 2 * len(self.codes) + _SPARE_WORDS:
            self._forget()
        used = np.bincount(self.codes + 1, minlength=len(self.vocabulary) + 1)[1:] > 0
        truths = [code for word, code in self.vocabulary.items() if isinstance(word, bool)]
        kinds: set[type] = {bool} if used[truths].any() else set()
        used[truths] = False
        kinds |= {str} if used.any() else set()
        kinds |= set() if np.isnan(self.numbers).all() else {float}
        return Column(self.numbers, self.codes, self.vocabulary, frozenset(kinds))

    def _forget(self) -> None:
        """Take words out that no row has any longer: of an attribute that keeps changing there would be ever more."""
        used = np.unique(self.codes[self.codes >= 0])
        words = list(self.vocabulary)
        self.vocabulary = {words[code]: number for number, code in enumerate(used.tolist())}
        self.codes = np.where(self.codes < 0, -1, np.searchsorted(used, self.codes)).astype(np.int32)


def match_filter(columns: Columns, live: Mask, given: Mapping[str, object]) -> Mask:
    """Live rows that meet every condition, `{"price": {"gte": 2, "lt": 5}, "colour": "red"}`; raises FilterError.

    A row without the attribute, or with a value of another type, meets no condition but `ne`. An attribute that no row
    has is taken for a mistake, and so is a value of a type that no row has.
    """
    if len(given) > MAX_CONDITIONS:
        raise FilterError(f"A filter has at most {MAX_CONDITIONS} attributes")
    mask, some = live, bool(live.any())
    for name, conditions in given.items():
        stated = conditions if isinstance(conditions, Mapping) else {"eq": conditions}
        if not stated:
            raise FilterError(f"The condition should be a value or an object of {', '.join(OPERATORS)}", name)
        for operation, value in stated.items():
            path = (name, str(operation)) if stated is conditions else (name,)
            _check(operation, value, path)
            if not some:
                continue
            column = _column(columns, name)
            for one in value if isinstance(value, list) else [value]:
                _check_type(column, one, path)
            mask = mask & _met(column, operation, value)
    return mask


def _met(column: Column, operation: str, value: Any) -> Mask:
    if operation == "eq":
        return column.equal(value)
    if operation == "ne":
        return ~column.equal(value)
    if operation == "in":
        return np.asarray(np.logical_or.reduce([column.equal(one) for one in value]))
    return column.ordered(operation, value)


def _check(operation: object, value: object, path: tuple[str, ...]) -> None:
    if operation not in OPERATORS:
        raise FilterError(f"There is no such comparison; there are {', '.join(OPERATORS)}", *path)
    if operation == "in":
        if not isinstance(value, list) or not 1 <= len(value) <= MAX_CHOICES:
            raise FilterError(f"What is compared with 'in' should be a list of 1 to {MAX_CHOICES} values", *path)
        if not all(map(_is_value, value)):
            raise FilterError("Each value should be a string, a finite number, true or false", *path)
    elif not _is_value(value):
        raise FilterError("The value should be a string, a finite number, true or false", *path)
    elif operation in ORDERED and isinstance(value, bool):
        raise FilterError("True and false have no order; compare them with eq, ne or in", *path)


def _is_value(value: object) -> bool:
    if isinstance(value, str | bool):
        return True
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def _column(columns: Columns, name: str) -> Column:
    if name not in columns:
        known = sorted(columns)
        listed = ", ".join(known[:_NAMED]) + (", ..." if len(known) > _NAMED else "")
        raise FilterError(f"No item has this attribute; there are: {listed or 'none'}", name)
    return columns[name]


def _check_type(column: Column, value: object, path: tuple[str, ...]) -> None:
    if (type(value) if isinstance(value, str | bool) else float) not in column.kinds:
        held = " and ".join(name for kind, name in _KINDS.items() if kind in column.kinds)
        raise FilterError(f"No item has such a value here; this attribute holds {held}", *path)
