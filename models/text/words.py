"""Splitting a text into the words that a reader sees, and aligning them with tokens.

Knows characters and offsets, nothing of tokenizers or models.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
LINK_PATTERN = "https?://\\S+"
LINK_WORD = re.compile(LINK_PATTERN)
CHUNK = re.compile(rf"{LINK_PATTERN}|(?:(?!{LINK_PATTERN})[^\s\x00-\x1f\x7f-\x9f])+")
"""A link, or a run of characters without white space and controls."""

APOSTROPHES, SENTENCE_MARKS, JOINER = "'’", ".,", "\u200d"


@dataclass(frozen=True, slots=True)
class WordSpans:
    """A text split into words: `text[start:end]` for each of `spans`, in order, without white space.

    `token_positions[word]` are the word's positions among the tokens of the text, or of the dialogue around it.
    A token that spans several words belongs to each: Chinese characters, or a number and its percent sign.
    A word that the tokenizer drops has no position. `read_span` is the part of the text that the tokens cover.
    `mentions` are the token positions that name the target entity.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    token_positions: tuple[tuple[int, ...], ...]
    read_span: tuple[int, int]
    mentions: frozenset[int] = frozenset()

    def is_entity(self, word: int) -> bool:
        """Return True if the word belongs to a mention of the target entity."""
        return not self.mentions.isdisjoint(self.token_positions[word])


def split_words(
    text: str, read_span: tuple[int, int], offsets: Sequence[tuple[int, int]], first: int, mentions: frozenset[int]
) -> WordSpans:
    """Return the words of a text, given the token `offsets` in it and the position `first` of the first token."""
    start = read_span[0]
    spans = tuple((begin + start, end + start) for begin, end in word_spans(text[slice(*read_span)]))
    return WordSpans(text, spans, tokens_of_words(spans, offsets, first), read_span, mentions)


def word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each word.

    Links stay whole and Chinese characters stand alone. Punctuation stands alone too, with two exceptions: repeats
    (`!!!`), and marks inside a word or a number (`don't`, `3.5`). Marks and joiners stay with the character that they
    modify, so an emoji of several characters is a single word.
    """
    for chunk in CHUNK.finditer(text):
        start, end = chunk.span()
        if LINK_WORD.match(text, start):
            yield start, end
            continue
        for index in range(start + 1, end):
            if not is_joined(text, start, index, end):
                yield start, index
                start = index
        yield start, end


def is_joined(text: str, start: int, index: int, end: int) -> bool:
    """Return True if the character at `index` continues the word that began at `start`; the chunk ends at `end`."""
    before, here, after = text[index - 1], text[index], text[index + 1 : min(index + 2, end)]
    if is_modifier(here):
        return True
    if before == JOINER:
        return not is_word_character(here)
    if is_flag_letter(here):
        return is_flag_letter(before) and index - start == 1
    if HAN.match(here):
        return False
    if is_word_character(here):
        inside = before in APOSTROPHES or (before in SENTENCE_MARKS and here.isdigit())
        return is_word_character(text[start]) and not HAN.match(text[start]) and (can_precede_letter(before) or inside)
    if here in APOSTROPHES or here in SENTENCE_MARKS:
        inside = here in APOSTROPHES or (before.isdigit() and after.isdigit())
        return (
            inside
            and is_word_character(text[start])
            and can_precede_letter(before)
            and is_word_character(after)
            and not HAN.match(after)
        )
    return here == before == text[start]


def is_word_character(character: str) -> bool:
    """Return True for a letter of any script, a digit or an underscore."""
    return character.isalnum() or character == "_"


def can_precede_letter(character: str) -> bool:
    """Return True if a letter that follows the character belongs to the same word."""
    return is_modifier(character) or (is_word_character(character) and not HAN.match(character))


def is_modifier(character: str) -> bool:
    """Return True if a character only modifies the previous character: marks, joiners, skin tones of emoji."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf") or "\U0001f3fb" <= character <= "\U0001f3ff"


def is_flag_letter(character: str) -> bool:
    """Return True for a regional indicator, two of which make the flag of a country."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def tokens_of_words(
    spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], first: int
) -> tuple[tuple[int, ...], ...]:
    """Return the token positions of each word, with tokens of the white space before it, counted from `first`."""
    positions: list[tuple[int, ...]] = []
    begin = before = 0
    for _, end in spans:
        while begin < len(offsets) and max(offsets[begin][1], offsets[begin][0] + 1) <= before:
            begin += 1
        last = begin
        while last < len(offsets) and offsets[last][0] < end:
            last += 1
        positions.append(tuple(range(begin + first, last + first)))
        before = end
    return tuple(positions)
