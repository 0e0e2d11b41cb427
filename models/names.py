"""Lists of names for people: short, with the names first that look like a given one."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

MAX_LISTED_NAMES = 8
_MAX_COMPARED_NAMES = 200  # in a few milliseconds


def list_nearest(names: Iterable[str], wanted: str) -> str:
    """Return at most `MAX_LISTED_NAMES` names, those most like the wanted one first, and how many more there are.

    Equally near names are in alphabetical order. Of very many names only those that sort next to the wanted one are
    compared. The result is empty without names.
    """
    known = sorted(names, key=_sort_key)
    start = bisect_left(known, _sort_key(wanted), key=_sort_key) - _MAX_COMPARED_NAMES // 2
    start = max(0, min(start, len(known) - _MAX_COMPARED_NAMES))
    pairs = _pairs(wanted)
    compared = sorted(known[start : start + _MAX_COMPARED_NAMES], key=lambda name: -_similarity(_pairs(name), pairs))
    more = len(known) - MAX_LISTED_NAMES
    return ", ".join(compared[:MAX_LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")


def _sort_key(name: str) -> tuple[str, str]:
    """Return the letters and digits in lower case, so that `Team 7` sorts next to `team-7`."""
    return "".join(filter(str.isalnum, name.casefold())), name


def _pairs(name: str) -> set[str]:
    """Return the pairs of neighbouring letters, in lower case. A space on either side makes the ends count."""
    padded = f" {name.casefold()} "
    return {padded[index : index + 2] for index in range(len(padded) - 1)}


def _similarity(first: set[str], second: set[str]) -> float:
    """Return the Dice coefficient."""
    return 2 * len(first & second) / (len(first) + len(second))
