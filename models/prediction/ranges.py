"""Ranges of the numbers in files, so that no answer that is computed from them can be infinite or NaN."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_WEIGHT = 1e6
"""The largest magnitude of a weight. Products of vectors with such weights are finite in fp32."""

MAX_NAME_CHARS = 128


class RangeError(ValueError):
    """A number outside its range, or an array with one. The message names the range."""


def check_number(name: str, value: Any, low: float, high: float) -> float:
    """Return the value as a float; raise RangeError unless it is a number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RangeError(f"its {name} should be a number from {low:g} to {high:g}, not {_show(value)}")
    return float(value)


def check_finite(name: str, value: Any) -> float:
    """Return the value as a float; raise RangeError unless it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        raise RangeError(f"its {name} should be a finite number, not {_show(value)}")
    return float(value)


def check_array(name: str, values: NDArray[Any], low: float = -MAX_WEIGHT, high: float = MAX_WEIGHT) -> None:
    """Raise RangeError unless all values are from `low` to `high`; NaN is not."""
    if not np.all((values >= low) & (values <= high)):
        raise RangeError(f"the numbers in its {name} should be from {low:g} to {high:g}, and finite")


def check_name(kind: str, name: Any) -> str:
    """Return the name; raise RangeError unless it has 1 to 128 characters and can be read."""
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_CHARS:
        raise RangeError(f"its {kind} should be text of 1 to {MAX_NAME_CHARS} characters, not {_show(name)}")
    return name


def _show(value: Any) -> str:
    return repr(value)[:40]
