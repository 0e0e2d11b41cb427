"""A text as the words that a reader sees, and which of a model's tokens each of them is.

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
"""What stands between white space and controls: a link, or words."""

APOSTROPHES, SENTENCE_MARKS, JOINER = "'’", ".,", "\u200d"


@dataclass(frozen=True, slots=True)
class WordSpans:
    """A text as words: `text[start:end]` for each of `spans`, in order, without white space.

    `places[word]` are its positions among the tokens, of the text or of the dialogue that it is a turn of. A token that
    reaches over several words (Chinese characters, a number and its percent sign) is in the places of each. A word of
    which the tokenizer keeps nothing has none. `read` is the part of the text that the tokens hold, `mentions` are the
    positions that name the entity which is asked about.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    token_positions: tuple[tuple[int, ...], ...]
    read: tuple[int, int]
    mentions: frozenset[int] = frozenset()

    def is_entity(self, word: int) -> bool:
        """Whether the word belongs to a mention of the entity that is asked about."""
        return not self.mentions.isdisjoint(self.token_positions[word])


def split_words(
    text: str, read: tuple[int, int], offsets: Sequence[tuple[int, int]], first: int, mentions: frozenset[int]
) -> WordSpans:
    """`offsets` are where in the text each token comes from; the first of them is at `first`."""
    spans = tuple((start + read[0], end + read[0]) for start, end in word_spans(text[slice(*read)]))
    return WordSpans(text, spans, tokens_of_words(spans, offsets, first), read, mentions)


def word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where each word begins and ends.

    Links are whole, Chinese characters stand alone, and so does punctuation but for repeats (`!!!`) and what holds a
    word or a number together (`don't`, `3.5`). Marks and joiners stay with what they change: an emoji of several
    characters is one word.
    """
    for chunk in CHUNK.finditer(text):
        start, end = chunk.span()
        if LINK_WORD.match(text, start):
            yield start, end
            continue
        for place in range(start + 1, end):
            if not is_joined(text, start, place, end):
                yield start, place
                start = place
        yield start, end


def is_joined(text: str, start: int, place: int, end: int) -> bool:
    """Whether the character at `place` continues the word that began at `start`; the chunk ends at `end`."""
    before, here, after = text[place - 1], text[place], text[place + 1 : min(place + 2, end)]
    if extends(here):
        return True
    if before == JOINER:
        return not is_letter(here)
    if is_flag(here):
        return is_flag(before) and place - start == 1
    if HAN.match(here):
        return False
    if is_letter(here):
        inside = before in APOSTROPHES or (before in SENTENCE_MARKS and here.isdigit())
        return is_letter(text[start]) and not HAN.match(text[start]) and (is_part(before) or inside)
    if here in APOSTROPHES or here in SENTENCE_MARKS:
        digits = here in APOSTROPHES or (before.isdigit() and after.isdigit())
        return digits and is_letter(text[start]) and is_part(before) and is_letter(after) and not HAN.match(after)
    return here == before == text[start]


def is_letter(character: str) -> bool:
    """Or a digit."""
    return character.isalnum() or character == "_"


def is_part(character: str) -> bool:
    return extends(character) or (is_letter(character) and not HAN.match(character))


def extends(character: str) -> bool:
    """Whether a character only changes the one before it: marks, joiners, shades of emoji."""
    return unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf") or "\U0001f3fb" <= character <= "\U0001f3ff"


def is_flag(character: str) -> bool:
    """Whether it is one of the two letters that make the flag of a country."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def tokens_of_words(
    spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], first: int
) -> tuple[tuple[int, ...], ...]:
    """For each word the tokens that come from it or from the white space before it; the first token is at `first`."""
    found: list[tuple[int, ...]] = []
    begin = before = 0
    for _, end in spans:
        while begin < len(offsets) and max(offsets[begin][1], offsets[begin][0] + 1) <= before:
            begin += 1
        last = begin
        while last < len(offsets) and offsets[last][0] < end:
            last += 1
        found.append(tuple(range(begin + first, last + first)))
        before = end
    return tuple(found)
