"""The tokenizer: texts and dialogues to token ids within the limit.

Token type 1 marks what a prediction is about, among tokens of type 0. In a text that is the target entity, where the
text names it and where it is repeated after the text. In a dialogue it is the newest turn. Knows nothing of models.
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
from models.text.foreign import is_foreign
from models.text.language import detect_language, has_text
from models.text.mentions import find_mentions
from models.text.reading import READINGS, is_in_capitals, read_text
from models.text.words import LINK_PATTERN, WordSpans, split_words

CHARACTERS_PER_TOKEN = 16
"""Characters that the tokenizer reads first for each token of the limit. It reads more only if they are too few."""

ENTITY_SHARE = 4
"""Divisor of the token limit that gives the limit of an entity."""

LINK = {"type": "Replace", "pattern": {"Regex": LINK_PATTERN}, "content": "http"}
"""A normaliser step for links. A shortened link is a dozen meaningless tokens and shows only that there is a link."""

Speaker = Literal["customer", "agent"]


@dataclass(frozen=True, slots=True)
class Turn:
    speaker: Speaker
    text: str


class EmptyTextError(ValueError):
    """A text or an entity without any visible character."""


@dataclass(frozen=True, slots=True)
class AlignedEncoding:
    """Tokens aligned with the words of a text, or of the encoded turns of a dialogue, oldest first."""

    tokens: Encoding
    segments: tuple[WordSpans, ...]


class TextBundle(Protocol):
    """The fields of a bundle that a tokenizer needs."""

    @property
    def tokenizer(self) -> Path: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def reading(self) -> int: ...


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Token ids, their offsets in the text as sent, and the number of characters that were read."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    characters: int


class Tokenizer:
    """Encoder of texts by a `tokenizer.json` of the tokenizers library that has `<s>`, `</s>` and `<pad>`.

    `reading` is one of `READINGS`: how texts, entities and turns are read before they are split into tokens.
    """

    def __init__(self, path: Path, max_tokens: int, reading: int = 0) -> None:
        if reading not in READINGS:
            raise ValueError(f"the reading {reading} is unknown; readings are {', '.join(map(str, READINGS))}")
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._begin, self._end, self.pad_id = (self._token_id(token) for token in ("<s>", "</s>", "<pad>"))
        # A speaker's name is a mark, so no reading changes it.
        self._speaker_ids = {
            name: self._tokenizer.encode(f"{name}:", add_special_tokens=False).ids for name in get_args(Speaker)
        }
        self.max_tokens, self.reading = max_tokens, reading

    @classmethod
    def from_bundle(cls, bundle: TextBundle) -> Tokenizer:
        return cls(bundle.tokenizer, bundle.max_tokens, bundle.reading)

    def encode(self, text: str, entity: str | None = None) -> Encoding:
        """Return the text's tokens, at most `max_tokens`.

        A text over the limit is cut after its beginning. If it first names the entity beyond the limit, the part around
        that mention stays instead. The time is bounded: no more of the text is read than fills the limit.

        Raises:
            EmptyTextError: The text or the entity has no visible character.
        """
        return self._encode(text.strip(), entity)[0]

    def count_tokens(self, text: str) -> tuple[int, bool]:
        """Return the number of tokens of a text with its two marks, and whether that is all of a very long text."""
        stripped = text.strip()
        pieces = self._tokenize(stripped, 2 * self.max_tokens)
        return len(pieces.ids) + 2, pieces.characters >= len(stripped)

    def encode_with_words(self, text: str, entity: str | None = None) -> AlignedEncoding:
        """Return the tokens of `encode` with the words of the text; raises as `encode`."""
        tokens, offsets = self._encode(text.strip(), entity)
        mentions = frozenset(np.flatnonzero(tokens.token_types).tolist())
        return AlignedEncoding(tokens, (align_words(text, offsets, 1, tokens.truncated, mentions),))

    def token_strings(self, tokens: Encoding) -> list[str]:
        """Return each token as the tokenizer writes it: `▁` stands for a space before it."""
        return [str(self._tokenizer.id_to_token(token_id)) for token_id in tokens.ids.tolist()]

    def _encode(self, text: str, entity: str | None) -> tuple[Encoding, list[tuple[int, int]]]:
        """Return the tokens of a stripped text, and the offsets in it of the tokens between `<s>` and `</s>`."""
        if not has_text(text):
            raise EmptyTextError("the text is empty")
        suffix: list[int] = []
        if entity is not None:
            if not has_text(entity):
                raise EmptyTextError("the entity is empty")
            lower = self.reading > 0 and is_in_capitals(text)
            suffix = self._tokenize(entity.strip(), self.max_tokens // ENTITY_SHARE, lower).ids
            suffix = [self._end, *suffix[: self.max_tokens // ENTITY_SHARE], self._end]
        room = self.max_tokens - 2 - len(suffix)
        pieces = self._tokenize(text, room)
        mentions = [] if entity is None else find_mentions(text[: pieces.characters], entity)
        if self.reading:
            text_types = overlapping_types(mentions, pieces.offsets)
        else:
            text_types = entity_token_types(text, entity, pieces.offsets)
        start = truncation_start(text_types, room)
        ids = [self._begin, *pieces.ids[start : start + room], self._end, *suffix]
        types = [0, *text_types[start : start + room], 0]
        if suffix:
            types += [0, *[1] * (len(suffix) - 2), 0]
        tokens = Encoding(
            np.asarray(ids, np.int64),
            np.asarray(types, np.int64),
            len(pieces.ids) > room,
            detect_language(text[:2000]),
            names_entity=entity is None or bool(mentions),
            is_foreign=is_foreign(text),
        )
        return tokens, pieces.offsets[start : start + room]

    def encode_dialogue(self, newest_text: str, context: Sequence[Turn]) -> tuple[Encoding, int]:
        """Return the tokens of a dialogue, and the number of its turns that fit the limit.

        The newest turn comes last. Turns of the context are encoded whole, each after its speaker's name, and the
        oldest are dropped first. Without context the tokens are those of a text. The limit bounds the time.

        Raises:
            EmptyTextError: The newest turn has no visible character.
        """
        newest, _ = self._encode(newest_text.strip(), None)
        earlier = self._encode_context(context, self.max_tokens - newest.length - 1)
        return self._join_turns(newest, earlier), len(earlier) + 1

    def encode_dialogue_with_words(self, newest_text: str, context: Sequence[Turn]) -> AlignedEncoding:
        """Return the tokens of `encode_dialogue` with the words of the encoded turns; raises as `encode_dialogue`."""
        newest, newest_offsets = self._encode(newest_text.strip(), None)
        earlier = self._encode_context(context, self.max_tokens - newest.length - 1)
        segments, position = [], 1
        for turn, pieces in earlier:
            position += len(self._speaker_ids[turn.speaker])
            segments.append(align_words(turn.text, pieces.offsets, position, False))
            position += len(pieces.ids)
        first = position + 1 if earlier else 1
        segments.append(align_words(newest_text, newest_offsets, first, newest.truncated))
        return AlignedEncoding(self._join_turns(newest, earlier), tuple(segments))

    def _encode_context(self, context: Sequence[Turn], room: int) -> list[tuple[Turn, _Pieces]]:
        """Return the newest turns of the context that fit, with their tokens, oldest first."""
        encoded: list[tuple[Turn, _Pieces]] = []
        for turn in reversed(context):
            pieces = self._tokenize(turn.text.strip(), max(room, 1))
            room -= len(self._speaker_ids[turn.speaker]) + len(pieces.ids)
            if room < 0:
                break
            encoded.append((turn, pieces))
        return encoded[::-1]

    def _join_turns(self, newest: Encoding, earlier: Sequence[tuple[Turn, _Pieces]]) -> Encoding:
        if not earlier:
            return newest
        context_ids = (
            token_id for turn, pieces in earlier for token_id in (*self._speaker_ids[turn.speaker], *pieces.ids)
        )
        context = [self._begin, *context_ids, self._end]
        ids = np.asarray([*context, *newest.ids[1:]], np.int64)
        types = np.zeros(len(ids), np.int64)
        types[len(context) : -1] = 1
        return Encoding(ids, types, newest.truncated, newest.language, is_foreign=newest.is_foreign)

    def _tokenize(self, text: str, room: int, lower: bool | None = None) -> _Pieces:
        """Return the tokens that fill the room, and more. In a reading, `lower` overrides the text's own case."""
        characters = room * CHARACTERS_PER_TOKEN
        while True:
            pieces = self._read(text[:characters], lower)
            # Twice the room, because the last tokens of a cut text differ from those of the whole text.
            if len(text) <= characters or len(pieces.ids) >= 2 * room:
                return pieces
            characters *= 8

    def _read(self, text: str, lower: bool | None) -> _Pieces:
        if not self.reading:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            return _Pieces(encoding.ids, encoding.offsets, len(text))
        read = read_text(text, lower)
        encoding = self._tokenizer.encode(read.text, add_special_tokens=False)
        return _Pieces(encoding.ids, read.map_offsets(encoding.offsets), len(text))

    @property
    def mask_id(self) -> int:
        """The token that hides another one in pretraining. Raises ValueError if the tokenizer has none."""
        return self._token_id("<mask>")

    @property
    def special_ids(self) -> tuple[int, int, int]:
        """The tokens that begin, end and pad a text."""
        return self._begin, self._end, self.pad_id

    def _token_id(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(f"the tokenizer has no token {token}; use one that has <s>, </s> and <pad>")
        return int(token_id)


def align_words(
    text: str,
    offsets: Sequence[tuple[int, int]],
    first: int,
    truncated: bool,
    mentions: frozenset[int] = frozenset(),
) -> WordSpans:
    """Return the words of a text, which was stripped before encoding. `offsets` refer to the stripped text."""
    stripped = len(text) - len(text.lstrip())
    offsets = [(start + stripped, end + stripped) for start, end in offsets]
    read_span = (offsets[0][0], offsets[-1][1]) if truncated else (0, len(text))
    return split_words(text, read_span, offsets, first, mentions)


def entity_token_types(text: str, entity: str | None, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Return 1 for each token that overlaps a mention of the entity, a whole word in any case, else 0.

    Bundles of reading 0 were trained with these mentions. Any other marks those of `find_mentions`.
    """
    if entity is None:
        return [0] * len(offsets)
    name = entity.strip()
    before = r"(?<![A-Za-z0-9])" if name[:1].isascii() and name[:1].isalnum() else ""
    after = r"(?![A-Za-z0-9])" if name[-1:].isascii() and name[-1:].isalnum() else ""
    pattern = before + re.escape(name) + after
    text_end = offsets[-1][1] if offsets else 0
    matches = re.finditer(pattern, text[:text_end], re.IGNORECASE)
    return overlapping_types([match.span() for match in matches], offsets)


def overlapping_types(mentions: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Return 1 for each token that overlaps a mention, else 0. Mentions and tokens are in order."""
    types, mention = [], 0
    for start, end in offsets:
        while mention < len(mentions) and mentions[mention][1] <= start:
            mention += 1
        types.append(int(mention < len(mentions) and end > mentions[mention][0] and end > start))
    return types


def truncation_start(types: Sequence[int], room: int) -> int:
    """Return the index of the first token to keep: 0, unless the first mention of the entity is beyond the room."""
    if len(types) <= room or 1 in types[:room] or 1 not in types:
        return 0
    return min(types.index(1) - room // 2, len(types) - room)


def adapt_tokenizer(source: Path, target: Path) -> None:
    """Write a base encoder's `tokenizer.json` for Heed, with links replaced by a single word before any other step."""
    content = json.loads(source.read_text(encoding="utf-8"))
    steps = content["normalizer"]
    steps = steps["normalizers"] if steps and steps["type"] == "Sequence" else [step for step in [steps] if step]
    # A base made from a bundle has the step already.
    content["normalizer"] = {"type": "Sequence", "normalizers": steps if LINK in steps else [LINK, *steps]}
    content["truncation"] = content["padding"] = None
    target.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
