"""Text to token ids, and a list of those to one padded batch.

Knows the tokenizer file, the token limit and how what is asked about is marked, by type 1 among tokens of type 0: a
target entity where the text names it and where it is repeated after the text, the newest turn of a dialogue among
those before it. Knows nothing of models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
import tokenizers

from models.text.encoding import Encoding
from models.text.language import detect_language, has_text
from models.text.words import LINK_PATTERN, WordSpans, split_words

CHARACTERS_PER_TOKEN = 16
"""How much text is read at first for each token of room; more is read only when that was too little."""

ENTITY_SHARE = 4
"""An entity may take up to one part in this many of the token limit."""

LINK = {"type": "Replace", "pattern": {"Regex": LINK_PATTERN}, "content": "http"}
"""A normaliser step: a shortened link is a dozen meaningless pieces, and says only that there is a link."""

Speaker = Literal["customer", "agent"]


@dataclass(frozen=True, slots=True)
class Turn:
    speaker: Speaker
    text: str


class EmptyTextError(ValueError):
    """The text, or the entity, holds nothing that can be read."""


@dataclass(frozen=True, slots=True)
class AlignedEncoding:
    """Tokens, and what they are of: one text, or the turns of a dialogue that were read, oldest first."""

    tokens: Encoding
    segments: tuple[WordSpans, ...]


class TextBundle(Protocol):
    """A bundle, as far as its texts go."""

    @property
    def tokenizer(self) -> Path: ...

    @property
    def max_tokens(self) -> int: ...


class Tokenizer:
    """Encodes texts with a `tokenizer.json` of the tokenizers library that has `<s>`, `</s>` and `<pad>` pieces."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._begin, self._end, self.pad_id = (self._id(piece) for piece in ("<s>", "</s>", "<pad>"))
        self._marks = {speaker: self._pieces(f"{speaker}:", 8).ids for speaker in get_args(Speaker)}
        self.max_tokens = max_tokens

    @classmethod
    def from_bundle(cls, bundle: TextBundle) -> Tokenizer:
        return cls(bundle.tokenizer, bundle.max_tokens)

    def encode(self, text: str, entity: str | None = None) -> Encoding:
        """The text's tokens, at most `max_tokens`; raises EmptyTextError when nothing of it can be read.

        A text over the limit keeps its beginning, or, when the entity is first named beyond it, the part around
        that mention. The time is bounded: no more of the text is read than fills the limit.
        """
        return self._encode(text.strip(), entity)[0]

    def encode_with_words(self, text: str, entity: str | None = None) -> AlignedEncoding:
        """The same tokens, and the words they are of; raises as `encode`."""
        tokens, offsets = self._encode(text.strip(), entity)
        mentions = frozenset(np.flatnonzero(tokens.token_types).tolist())
        return AlignedEncoding(tokens, (align_words(text, offsets, 1, tokens.truncated, mentions),))

    def token_strings(self, tokens: Encoding) -> list[str]:
        """What each token is, as the tokenizer writes it: `▁` stands for a space before it."""
        return [str(self._tokenizer.id_to_token(number)) for number in tokens.ids.tolist()]

    def _encode(self, text: str, entity: str | None) -> tuple[Encoding, list[tuple[int, int]]]:
        """The tokens of a stripped text, and where in it each of those between `<s>` and `</s>` comes from."""
        if not has_text(text):
            raise EmptyTextError("the text is empty")
        suffix: list[int] = []
        if entity is not None:
            if not has_text(entity):
                raise EmptyTextError("the entity is empty")
            suffix = self._pieces(entity.strip(), self.max_tokens // ENTITY_SHARE).ids
            suffix = [self._end, *suffix[: self.max_tokens // ENTITY_SHARE], self._end]
        room = self.max_tokens - 2 - len(suffix)
        pieces = self._pieces(text, room)
        types = entity_token_types(text, entity, pieces.offsets)
        start = truncation_start(types, room)
        ids = [self._begin, *pieces.ids[start : start + room], self._end, *suffix]
        kept = [0, *types[start : start + room], 0]
        if suffix:
            kept += [0, *[1] * (len(suffix) - 2), 0]
        tokens = Encoding(
            np.asarray(ids, np.int64), np.asarray(kept, np.int64), len(pieces.ids) > room, detect_language(text[:2000])
        )
        return tokens, pieces.offsets[start : start + room]

    def encode_dialogue(self, newest_text: str, before: Sequence[Turn]) -> tuple[Encoding, int]:
        """A dialogue's newest turn after those before it, and how many were read: the oldest give way to the limit.

        Earlier turns are read whole or not at all, each after its speaker's name. The newest alone is as a text. Raises
        EmptyTextError when nothing of it can be read. The time is bounded by the limit.
        """
        newest, _ = self._encode(newest_text.strip(), None)
        earlier = self._earlier(before, self.max_tokens - newest.length - 1)
        return self._joined(newest, earlier), len(earlier) + 1

    def encode_dialogue_with_words(self, newest_text: str, before: Sequence[Turn]) -> AlignedEncoding:
        """The same tokens, and the words of the turns that were read; raises as `encode_dialogue`."""
        newest, newest_offsets = self._encode(newest_text.strip(), None)
        earlier = self._earlier(before, self.max_tokens - newest.length - 1)
        passages, place = [], 1
        for turn, pieces in earlier:
            place += len(self._marks[turn.speaker])
            passages.append(align_words(turn.text, pieces.offsets, place, False))
            place += len(pieces.ids)
        first = place + 1 if earlier else 1
        passages.append(align_words(newest_text, newest_offsets, first, newest.truncated))
        return AlignedEncoding(self._joined(newest, earlier), tuple(passages))

    def _earlier(self, before: Sequence[Turn], room: int) -> list[tuple[Turn, tokenizers.Encoding]]:
        """The newest of these turns that fit, with their pieces, oldest first."""
        found: list[tuple[Turn, tokenizers.Encoding]] = []
        for turn in reversed(before):
            pieces = self._pieces(turn.text.strip(), max(room, 1))
            room -= len(self._marks[turn.speaker]) + len(pieces.ids)
            if room < 0:
                break
            found.append((turn, pieces))
        return found[::-1]

    def _joined(self, newest: Encoding, earlier: Sequence[tuple[Turn, tokenizers.Encoding]]) -> Encoding:
        if not earlier:
            return newest
        said = (number for turn, pieces in earlier for number in (*self._marks[turn.speaker], *pieces.ids))
        context = [self._begin, *said, self._end]
        ids = np.asarray([*context, *newest.ids[1:]], np.int64)
        types = np.zeros(len(ids), np.int64)
        types[len(context) : -1] = 1
        return Encoding(ids, types, newest.truncated, newest.language)

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


def align_words(
    text: str,
    offsets: Sequence[tuple[int, int]],
    first: int,
    truncated: bool,
    mentions: frozenset[int] = frozenset(),
) -> WordSpans:
    """The words of a text that was stripped before it was encoded; `offsets` are those in the stripped text."""
    before = len(text) - len(text.lstrip())
    offsets = [(start + before, end + before) for start, end in offsets]
    read = (offsets[0][0], offsets[-1][1]) if truncated else (0, len(text))
    return split_words(text, read, offsets, first, mentions)


def entity_token_types(text: str, entity: str | None, offsets: Sequence[tuple[int, int]]) -> list[int]:
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


def truncation_start(types: Sequence[int], room: int) -> int:
    """Where the kept part of a text begins: at 0, unless its target is first named beyond the room."""
    if len(types) <= room or 1 in types[:room] or 1 not in types:
        return 0
    return min(types.index(1) - room // 2, len(types) - room)


def adapt_tokenizer(source: Path, target: Path) -> None:
    """Write a base encoder's `tokenizer.json` as Heed uses it: a link becomes one word before anything else."""
    content = json.loads(source.read_text(encoding="utf-8"))
    steps = content["normalizer"]
    steps = steps["normalizers"] if steps and steps["type"] == "Sequence" else [step for step in [steps] if step]
    content["normalizer"] = {"type": "Sequence", "normalizers": [LINK, *steps]}
    content["truncation"] = content["padding"] = None
    target.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
