"""A text as the model should see it, with exact offsets back to the text as sent.

A bundle's manifest names the reading with which the model was trained. Reading 0 is the text as sent. Reading 1 names
emoji, arrows and emoticons in words, and lowers the letters of a text in capitals. It drops tags, invisible characters
and the head of a forwarded post, and resolves HTML entities. A link is one word and a handle another. It cuts repeats,
and turns traditional into simplified characters. Before a number that can be compared with an earlier one it writes
how the two stand: `2.8 vs 5.8` is read as `2.8 vs higher 5.8`. The time is linear in the length of the text.
"""

from __future__ import annotations

import re
from dataclasses import replace

from models.text.language import has_text
from models.text.numbers import compare_numbers
from models.text.rewriting import READING, RewrittenText, rewrite

READINGS = (0, 1)
"""The readings that a bundle may name."""

MIN_CAPITALS = 10
"""Capitals that a text needs before it counts as written in capitals. A ticker or a short name has fewer."""

MIN_CAPITAL_SHARE = 0.7
"""The share of capitals among the letters, Chinese ones included, of a text that is written in capitals."""

_CASE_CHARACTERS = 2000
_TICKER = re.compile(r"\$[A-Za-z.]+|https?://\S+|@\w+|&[#\w]+;")


def read_text(text: str, lower: bool | None = None) -> RewrittenText:
    """Return a text in reading 1. Without `lower`, the text itself decides whether its capitals are lowered.

    A text of which nothing would remain is returned as sent.
    """
    rewritten = rewrite(text, READING)
    if rewritten.starts is not None:
        rewritten = _strip(rewritten)
        if not has_text(rewritten.text):
            return RewrittenText(text)
    if is_in_capitals(text) if lower is None else lower:
        rewritten = replace(rewritten, text=_lower(rewritten.text))
    return _write_comparisons(rewritten)


def is_in_capitals(text: str) -> bool:
    """Return True if a text is written in capitals, by its first 2,000 characters without tickers and links."""
    text = text[:_CASE_CHARACTERS]
    if sum(map(str.isupper, text)) < MIN_CAPITALS:
        return False
    text = _TICKER.sub("", text)
    capitals = sum(map(str.isupper, text))
    return capitals >= max(MIN_CAPITALS, MIN_CAPITAL_SHARE * sum(map(str.isalpha, text)))


def _lower(text: str) -> str:
    """Return the text in lower case, with as many characters as before."""
    lowered = text.lower()
    if len(lowered) == len(text):
        return lowered
    return "".join(small if len(small := letter.lower()) == 1 else letter for letter in text)


def _write_comparisons(rewritten: RewrittenText) -> RewrittenText:
    """Write a word before each compared number. It stands for the number's first character."""
    comparisons = compare_numbers(rewritten.text)
    if not comparisons:
        return rewritten
    text, size = rewritten.text, len(rewritten.text)
    starts = range(size) if rewritten.starts is None else rewritten.starts
    ends = range(1, size + 1) if rewritten.ends is None else rewritten.ends
    parts: list[str] = []
    new_starts: list[int] = []
    new_ends: list[int] = []
    done = 0
    for comparison in comparisons:
        position = comparison.position
        # Only English words have spaces around them.
        before = text[position - 1]
        is_apart = not comparison.word.endswith(" ") or before.isspace() or before in "(["
        word = comparison.word if is_apart else f" {comparison.word}"
        parts += text[done:position], word
        new_starts += starts[done:position]
        new_starts += [starts[position]] * len(word)
        new_ends += ends[done:position]
        new_ends += [ends[position]] * len(word)
        done = position
    parts.append(text[done:])
    return RewrittenText("".join(parts), [*new_starts, *starts[done:]], [*new_ends, *ends[done:]])


def _strip(rewritten: RewrittenText) -> RewrittenText:
    start = len(rewritten.text) - len(rewritten.text.lstrip())
    end = len(rewritten.text.rstrip())
    assert rewritten.starts is not None
    assert rewritten.ends is not None
    return RewrittenText(rewritten.text[start:end], rewritten.starts[start:end], rewritten.ends[start:end])
