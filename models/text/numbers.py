"""Numbers of a text that can be compared, and which is larger.

A tokenizer cuts `14.5` and `9.5` into pieces that show no size. So a model is told how a number stands to the one
before it in the same unit: lower, equal or higher. These are words, because a model that knows what lower costs mean
then reads a cost beside a higher one. Dates, times, ranges and codes are no such numbers.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass

from models.text.words import HAN

MAX_RATIO = 20
"""The largest ratio of two numbers that are compared. Percentages may differ by more."""

COMPARED_BEFORE = 4
"""Numbers before one that it may be compared with."""

_WORDS = {"en": {-1: "lower ", 0: "equal ", 1: "higher "}, "zh": {-1: "更低", 0: "持平", 1: "更高"}}
_SCALES = {
    **dict.fromkeys(("k", "thousand", "千"), 1e3),
    **dict.fromkeys(("m", "mn", "mln", "million", "百万"), 1e6),
    **dict.fromkeys(("b", "bn", "bln", "billion"), 1e9),
    **dict.fromkeys(("tn", "trillion", "万亿"), 1e12),
    **{"lakh": 1e5, "crore": 1e7, "cr": 1e7, "万": 1e4, "千万": 1e7, "亿": 1e8},
}
_DIGITS = re.compile(r"\d[\d.,]*")
_VALUE = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,15}(?:\.\d{1,9})?")
_JOINED = re.compile(r"[A-Za-z0-9_:/#@~\u2013\u2212$€£¥₹.之-]")
_BEFORE = re.compile(
    r"(?P<code>[A-Za-z0-9_:/#@]|[A-Za-z0-9%][-\u2013~])?(?P<prefix>(?P<minus>[-\u2212])?(?P<currency>"
    r"(?<![A-Za-z])(?:US|HK|A|C|S)?[$€£¥₹]|(?<![A-Za-z])(?:USD|EUR|GBP|CNY|RMB|HKD|JPY|INR|Rs\.?))?(?P<hundredths>百分之)?)\Z"
)
_BEFORE_CHARACTERS = 6
_MONTH_CHARACTERS = 12
_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_MONTH_BEFORE = re.compile(rf"{_MONTH}[a-z]*\.?\s\Z")
_AFTER = re.compile(
    r"(?:(?P<percent>\s?(?:%|‰|个?百分点|(?i:per\s?cent|pct|percentage points?|basis points|bps)(?![A-Za-z])))"
    r"|\s?(?P<scale>(?i:thousand|million|billion|trillion|crore|lakh|mln|bln|mn|bn|tn|cr|[kmb])(?![A-Za-z])"
    r"|万亿|千万|百万|[千万亿]))?(?![A-Za-z0-9_年月日号点时分届楼]|[:/\u2013~-]\d)" + rf"(?!\s{_MONTH})"
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The number that starts at `position` against one before it, in a word of the text's language."""

    position: int
    word: str


@dataclass(frozen=True, slots=True)
class _Number:
    position: int
    value: float
    is_percent: bool


def compare_numbers(text: str) -> list[Comparison]:
    """Return how the numbers of a text stand to the nearest comparable ones before them, in linear time."""
    digits = list(_DIGITS.finditer(text))
    if len(digits) < 2:
        return []
    comparisons: list[Comparison] = []
    words: dict[int, str] = {}
    earlier: deque[_Number] = deque(maxlen=COMPARED_BEFORE)
    for match in digits:
        number = _read_number(text, match)
        if number is None:
            continue
        other = next((other for other in earlier if _is_comparable(other, number)), None)
        if other is not None:
            words = words or _WORDS["zh" if HAN.search(text) else "en"]
            order = (number.value > other.value) - (number.value < other.value)
            comparisons.append(Comparison(number.position, words[order]))
        earlier.appendleft(number)
    return comparisons


def _read_number(text: str, match: re.Match[str]) -> _Number | None:
    """Return the number of these digits, None if they are a date, a time, a range or a code."""
    digits = match[0].rstrip(".,")
    start, end = match.start(), match.start() + len(digits)
    if not _VALUE.fullmatch(digits):
        return None
    after = _AFTER.match(text, end)
    if after is None:
        return None
    before = None
    if _JOINED.match(text, max(0, start - 1), start):
        before = _BEFORE.search(text, max(0, start - _BEFORE_CHARACTERS), start)
        if before is None or before["code"]:
            return None
    is_percent, scale = bool(after["percent"] or (before and before["hundredths"])), after["scale"]
    if digits.isdigit() and not (is_percent or scale or before) and _is_date(text, start, int(digits)):
        return None
    value = float(digits.replace(",", "")) * (_SCALES[scale.lower()] if scale else 1.0)
    if after["percent"] and after["percent"].strip().lower() in ("bps", "basis points"):
        value /= 100
    if before is None:
        return _Number(start, value, is_percent)
    return _Number(before.start("prefix"), -value if before["minus"] else value, is_percent)


def _is_date(text: str, start: int, value: int) -> bool:
    """Return True for a bare whole number that is a year, or a day after the name of a month."""
    after_month = _MONTH_BEFORE.search(text, max(0, start - _MONTH_CHARACTERS), start)
    return 1900 <= value <= 2100 or (value <= 31 and bool(after_month))


def _is_comparable(earlier: _Number, number: _Number) -> bool:
    if earlier.is_percent or number.is_percent:
        return earlier.is_percent == number.is_percent
    small, large = sorted((abs(earlier.value), abs(number.value)))
    return 0 < small <= large <= MAX_RATIO * small
