"""Text to token ids, and a list of those to one padded batch.

Knows the tokenizer file, the token limit and how what is asked about is marked, by type 1 among tokens of type 0: a
target entity where the text names it and where it is repeated after the text, the newest turn of a dialogue among
those before it. Knows nothing of models.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import tokenizers
from numpy.typing import NDArray

CHARACTERS_PER_TOKEN = 16
"""How much text is read at first for each token of room; more is read only when that was too little."""

ENTITY_SHARE = 4
"""An entity may take up to one part in this many of the token limit."""

LINK_PATTERN = "https?://\\S+"
LINK = {"type": "Replace", "pattern": {"Regex": LINK_PATTERN}, "content": "http"}
"""A normaliser step: a shortened link is a dozen meaningless pieces, and says only that there is a link."""

HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
LATIN = re.compile("[A-Za-z]")
LINKED = re.compile(LINK_PATTERN)
CHUNK = re.compile(rf"{LINK_PATTERN}|(?:(?!{LINK_PATTERN})[^\s\x00-\x1f\x7f-\x9f])+")
"""What stands between white space and controls: a link, or words."""

APOSTROPHES, POINTS, JOINER = "'’", ".,", "\u200d"


Speaker = Literal["customer", "agent"]


@dataclass(frozen=True, slots=True)
class Turn:
    speaker: Speaker
    text: str


class EmptyTextError(ValueError):
    """The text, or the entity, holds nothing that can be read."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One encoded text: `ids` and `types`, each of shape (length,)."""

    ids: NDArray[np.int64]
    types: NDArray[np.int64]
    truncated: bool
    language: str

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def targeted(self) -> bool:
        """Whether the answer is to be about an entity."""
        return bool(self.types.any())


@dataclass(frozen=True, slots=True)
class Words:
    """A text as words: `text[start:end]` for each of `spans`, in order, without white space.

    `places[word]` are its positions among the tokens. A token that reaches over several words (Chinese characters, a
    number and its percent sign) is in the places of each. A word of which the tokenizer keeps nothing has none. `read`
    is the part of the text that the tokens hold.
    """

    text: str
    tokens: Tokens
    spans: tuple[tuple[int, int], ...]
    places: tuple[tuple[int, ...], ...]
    read: tuple[int, int]

    def named(self, word: int) -> bool:
        """Whether the word belongs to a mention of the entity that is asked about."""
        return any(self.tokens.types[place] for place in self.places[word])


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded texts: `ids`, `mask` and `types`, each of shape (batch, length)."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    types: NDArray[np.int64]


class Tokenizer:
    """Encodes texts with a `tokenizer.json` of the tokenizers library that has `<s>`, `</s>` and `<pad>` pieces."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._begin, self._end, self.pad = (self._id(piece) for piece in ("<s>", "</s>", "<pad>"))
        self._marks = {speaker: self._pieces(f"{speaker}:", 8).ids for speaker in get_args(Speaker)}
        self.max_tokens = max_tokens

    def encode(self, text: str, entity: str | None = None) -> Tokens:
        """The text's tokens, at most `max_tokens`; raises EmptyTextError when nothing of it can be read.

        A text over the limit keeps its beginning, or, when the entity is first named beyond it, the part around
        that mention. The time is bounded: no more of the text is read than fills the limit.
        """
        return self._encode(text.strip(), entity)[0]

    def words(self, text: str, entity: str | None = None) -> Words:
        """The same tokens, and the words they are of; raises as `encode`."""
        tokens, offsets = self._encode(text.strip(), entity)
        before = len(text) - len(text.lstrip())
        offsets = [(start + before, end + before) for start, end in offsets]
        read = (offsets[0][0], offsets[-1][1]) if tokens.truncated else (0, len(text))
        spans = tuple((start + read[0], end + read[0]) for start, end in word_spans(text[slice(*read)]))
        return Words(text, tokens, spans, places_of(spans, offsets, first=1), read)

    def pieces(self, tokens: Tokens) -> list[str]:
        """What each token is, as the tokenizer writes it: `▁` stands for a space before it."""
        return [str(self._tokenizer.id_to_token(number)) for number in tokens.ids.tolist()]

    def _encode(self, text: str, entity: str | None) -> tuple[Tokens, list[tuple[int, int]]]:
        """The tokens of a stripped text, and where in it each of those between `<s>` and `</s>` comes from."""
        if not is_readable(text):
            raise EmptyTextError("the text is empty")
        suffix: list[int] = []
        if entity is not None:
            if not is_readable(entity):
                raise EmptyTextError("the entity is empty")
            suffix = self._pieces(entity.strip(), self.max_tokens // ENTITY_SHARE).ids
            suffix = [self._end, *suffix[: self.max_tokens // ENTITY_SHARE], self._end]
        room = self.max_tokens - 2 - len(suffix)
        pieces = self._pieces(text, room)
        types = mention_types(text, entity, pieces.offsets)
        start = window_start(types, room)
        ids = [self._begin, *pieces.ids[start : start + room], self._end, *suffix]
        kept = [0, *types[start : start + room], 0]
        if suffix:
            kept += [0, *[1] * (len(suffix) - 2), 0]
        tokens = Tokens(
            np.asarray(ids, np.int64), np.asarray(kept, np.int64), len(pieces.ids) > room, language_of(text[:2000])
        )
        return tokens, pieces.offsets[start : start + room]

    def encode_dialogue(self, newest_text: str, before: Sequence[Turn]) -> tuple[Tokens, int]:
        """A dialogue's newest turn after those before it, and how many were read: the oldest give way to the limit.

        Earlier turns are read whole or not at all, each after its speaker's name. The newest alone is as a text. Raises
        EmptyTextError when nothing of it can be read. The time is bounded by the limit.
        """
        newest = self.encode(newest_text)
        left = self.max_tokens - newest.length - 1
        earlier: list[list[int]] = []
        for turn in reversed(before):
            mark = self._marks[turn.speaker]
            pieces = [*mark, *self._pieces(turn.text.strip(), max(left, 1)).ids]
            if len(pieces) > left:
                break
            earlier.append(pieces)
            left -= len(pieces)
        if not earlier:
            return newest, 1
        context = [self._begin, *(piece for pieces in reversed(earlier) for piece in pieces), self._end]
        ids = np.asarray([*context, *newest.ids[1:]], np.int64)
        types = np.zeros(len(ids), np.int64)
        types[len(context) : -1] = 1
        return Tokens(ids, types, newest.truncated, newest.language), len(earlier) + 1

    def _pieces(self, text: str, room: int) -> tokenizers.Encoding:
        characters = room * CHARACTERS_PER_TOKEN
        while True:
            pieces = self._tokenizer.encode(text[:characters], add_special_tokens=False)
            # Twice the room, because the last pieces of a text that was cut are not those of the whole text.
            if len(text) <= characters or len(pieces.ids) >= 2 * room:
                return pieces
            characters *= 8

    def _id(self, piece: str) -> int:
        number = self._tokenizer.token_to_id(piece)
        if number is None:
            raise ValueError(f"the tokenizer has no piece {piece}")
        return int(number)


def is_readable(text: str) -> bool:
    """Whether any character is more than white space, a control or an invisible format character."""
    return any(not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf") for c in text)


def mention_types(text: str, entity: str | None, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """1 for each piece that overlaps a place where the text names the entity, as a whole word, in any case."""
    if entity is None:
        return [0] * len(offsets)
    name = entity.strip()
    before = r"(?<![A-Za-z0-9])" if name[:1].isascii() and name[:1].isalnum() else ""
    after = r"(?![A-Za-z0-9])" if name[-1:].isascii() and name[-1:].isalnum() else ""
    read = offsets[-1][1] if offsets else 0
    spans = [found.span() for found in re.finditer(before + re.escape(name) + after, text[:read], re.IGNORECASE)]
    types, place = [], 0
    for start, end in offsets:
        while place < len(spans) and spans[place][1] <= start:
            place += 1
        types.append(int(place < len(spans) and end > spans[place][0] and end > start))
    return types


def window_start(types: Sequence[int], room: int) -> int:
    """Where the kept part of a text begins: at 0, unless its target is first named beyond the room."""
    if len(types) <= room or 1 in types[:room] or 1 not in types:
        return 0
    return min(types.index(1) - room // 2, len(types) - room)


def word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Where each word begins and ends.

    Links are whole, Chinese characters stand alone, and so does punctuation but for repeats (`!!!`) and what holds a
    word or a number together (`don't`, `3.5`). Marks and joiners stay with what they change: an emoji of several
    characters is one word.
    """
    for chunk in CHUNK.finditer(text):
        start, end = chunk.span()
        if LINKED.match(text, start):
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
        inside = before in APOSTROPHES or (before in POINTS and here.isdigit())
        return is_letter(text[start]) and not HAN.match(text[start]) and (is_part(before) or inside)
    if here in APOSTROPHES or here in POINTS:
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


def places_of(
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


def language_of(text: str) -> str:
    """`zh` when Chinese characters carry the text, else `en`; one Chinese character weighs about a short word."""
    han = len(HAN.findall(text))
    return "zh" if han and han * 4 >= len(LATIN.findall(text)) else "en"


def collate(items: Sequence[Tokens], pad: int) -> Batch:
    """One batch, padded to its longest text."""
    shape = (len(items), max(item.length for item in items))
    ids, mask, types = np.full(shape, pad, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for row, item in enumerate(items):
        ids[row, : item.length] = item.ids
        types[row, : item.length] = item.types
        mask[row, : item.length] = 1
    return Batch(ids, mask, types)


def adapt_tokenizer(source: Path, target: Path) -> None:
    """Write a base encoder's `tokenizer.json` as Heed uses it: a link becomes one word before anything else."""
    content = json.loads(source.read_text(encoding="utf-8"))
    steps = content["normalizer"]
    steps = steps["normalizers"] if steps and steps["type"] == "Sequence" else [step for step in [steps] if step]
    content["normalizer"] = {"type": "Sequence", "normalizers": [LINK, *steps]}
    content["truncation"] = content["padding"] = None
    target.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
