"""Rewriting a text in one pass, with the offsets of every character in the text as sent.

Knows what a web page, a post or a message wraps around a text, and removes or names it. Knows no tokenizer.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from models.text.emoji_names import EMOJI_PATTERN, EMOTICON_PATTERN, MODIFIERS, SIGNS, name_emoji, name_emoticon
from models.text.traditional import SIMPLIFIED

MAX_REPEATS = 3
"""Repeats of a character that stay: `sooooo` is read as `sooo`."""

LINK_NAME, HANDLE_NAME = "http", "@user"

HALF_WIDTH = {0x3000: " "} | {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
PLAIN_FORMS = HALF_WIDTH | {ord(character): simple for character, simple in SIMPLIFIED.items()}
"""A translation of one character to one: full-width ASCII to ASCII, traditional to simplified characters."""

_INVISIBLE = (
    "\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    "\U000e0000-\U000e007f"
)
_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_INLINE_TAGS = "a|abbr|b|big|cite|code|del|em|font|i|ins|mark|q|s|small|span|strike|strong|sub|sup|tt|u|wbr"
_BLOCK_TAGS = (
    "article|aside|base|blockquote|body|br|button|caption|center|dd|div|dl|dt|figcaption|figure|footer|form|h[1-6]|head"
    "|header|hr|html|iframe|img|input|label|li|link|main|meta|nav|ol|option|p|picture|pre|script|section|select|source"
    "|style|svg|table|tbody|td|textarea|tfoot|th|thead|title|tr|ul|video"
)
_TAG = rf"/?(?:{_INLINE_TAGS}|{_BLOCK_TAGS})"
_INLINE = re.compile(rf"(?:<|&lt;)/?(?:{_INLINE_TAGS})\b", re.IGNORECASE)

# Each part starts in few places or stops at the next mark of its kind, so that the time is linear in the text.
_LINK = rf"(?P<link>[Hh][Tt][Tt][Pp][Ss]?://[^\s<>{_HAN}\u3001-\u3020]+)"
_MARKUP = (
    rf"(?P<tag>(?i:<{_TAG}(?:\s+[a-z-]+\s*=[^<>]*|\s+[a-z]+\s*/?|\s*/?)>"
    rf"|&lt;{_TAG}(?:\s+[a-z-]+\s*=[^<>&]*|\s*/?)&gt;)|<!--[^<>]*-->)"
    r"|(?P<entity>&(?:\#[0-9]{1,7}|\#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});)"
)
_RETWEET = r"(?P<retweet>\A\s*(?:RT\s@\w{1,30}:?\s+)+)"
_HANDLE = (
    r"(?P<handle>(?<![A-Za-z0-9_.@/])@(?:(?=[0-9_]*[A-Za-z])[A-Za-z0-9_]{1,30}(?![A-Za-z0-9_])"
    rf"|[{_HAN}A-Za-z0-9_-]{{2,20}}(?=[\s:]|\Z)))"
)
_EMOJI = rf"(?P<emoji>(?P<sign>{EMOJI_PATTERN})(?P<again>(?:\s?(?P=sign))*))"
_EMOTICON = rf"(?P<emoticon>(?<![^\s{_HAN}.!?,~])(?:{EMOTICON_PATTERN})(?=[\s.!?,]|\Z))"
_REPEAT = rf"(?P<repeat>(?P<unit>[^\s\d])(?P=unit){{{MAX_REPEATS},}})"
_HIDDEN = f"(?P<hidden>[{_INVISIBLE}]+)"

READING = re.compile("|".join([_RETWEET, _LINK, _MARKUP, _HANDLE, _EMOJI, _EMOTICON, _HIDDEN, _REPEAT]))
"""Everything that a model reads in another form."""

CLEANING = re.compile("|".join([_LINK, _MARKUP, _HIDDEN]))
"""The marks around the names of a text."""

_MARKS = re.compile(rf"[&<@_^\\╯{_INVISIBLE}{MODIFIERS}{SIGNS}\u20e3\U0001f1e6-\U0001f1ff]")
_FACES = re.compile(r"[:;=][-'()\[\]/\\|DPpOo]")
_REPEATS = re.compile(_REPEAT)


@dataclass(frozen=True, slots=True)
class RewrittenText:
    """A text with, for each character, the `starts` and `ends` of what it stands for in the text as sent.

    Both are None if the characters are those of the text as sent, in the same places.
    """

    text: str
    starts: Sequence[int] | None = None
    ends: Sequence[int] | None = None

    def map_offsets(self, offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return offsets in the text as sent."""
        if self.starts is None or self.ends is None:
            return list(offsets)
        mapped, last = [], len(self.text) - 1
        for start, end in offsets:
            if end > start:
                mapped.append((self.starts[start], self.ends[end - 1]))
            else:
                place = self.starts[start] if start <= last else self.ends[last]
                mapped.append((place, place))
        return mapped


@dataclass(slots=True)
class _Writer:
    """Collects the parts of a rewritten text. `pending` is where words end that need a space before the next part."""

    source: str
    parts: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    pending: int | None = None

    def copy(self, start: int, end: int) -> None:
        if start < end:
            part = self.source[start:end]
            self._separate(part)
            self.parts.append(part)
            self.starts += range(start, end)
            self.ends += range(start + 1, end + 1)

    def write(self, part: str, start: int, end: int) -> None:
        self._separate(part)
        self.parts.append(part)
        self.starts += [start] * len(part)
        self.ends += [end] * len(part)

    def write_words(self, words: str, start: int, end: int) -> None:
        """Write words in place of a sign, with spaces around them that belong to no character of the source."""
        if not words[0].isalnum():
            self.write(words, start, end)
            return
        self.pending = start if self.pending is None else self.pending
        self.write(words, start, end)
        self.pending = end

    def _separate(self, following: str) -> None:
        if self.pending is None:
            return
        place, self.pending = self.pending, None
        needs_space = not (following[0].isspace() or following[0] in ".,;:!?)")
        if needs_space and self.parts and not self.parts[-1][-1].isspace():
            self.parts.append(" ")
            self.starts.append(place)
            self.ends.append(place)


def rewrite(text: str, pattern: re.Pattern[str]) -> RewrittenText:
    """Return the text with every match of `pattern`, which is `READING` or `CLEANING`, in the form to read."""
    text = text if text.isascii() else text.translate(PLAIN_FORMS)
    if not (_MARKS.search(text) or _FACES.search(text) or (pattern is READING and _REPEATS.search(text))):
        return RewrittenText(text)
    writer, end = _Writer(text), 0
    for match in pattern.finditer(text):
        writer.copy(end, match.start())
        end = match.end()
        _write_match(writer, match)
    if end == 0:
        return RewrittenText(text)
    writer.copy(end, len(text))
    return RewrittenText("".join(writer.parts), writer.starts, writer.ends)


def _write_match(writer: _Writer, match: re.Match[str]) -> None:
    """Write what a match is read as."""
    kind, (start, end), source = match.lastgroup, match.span(), match[0]
    if kind == "link":
        writer.write_words(LINK_NAME, start, end)
    elif kind == "handle":
        writer.write(HANDLE_NAME, start, end)
    elif kind == "tag":
        if not _INLINE.match(source):
            writer.pending = end
    elif kind == "entity":
        _write_entity(writer, source, start, end)
    elif kind == "emoji":
        _write_emoji(writer, match)
    elif kind == "emoticon":
        if is_emoticon(writer.source, start, end):
            writer.write_words(name_emoticon(source), start, end)
        else:
            writer.copy(start, end)
    elif kind == "repeat":
        writer.copy(start, start + MAX_REPEATS)


def _write_entity(writer: _Writer, source: str, start: int, end: int) -> None:
    plain = html.unescape(source)
    if plain == source:
        writer.copy(start, end)
    elif name := name_emoji(plain) if re.fullmatch(EMOJI_PATTERN, plain) else None:
        writer.write_words(name, start, end)
    elif plain := re.sub(f"[{_INVISIBLE}]", "", plain.translate(PLAIN_FORMS)):
        writer.write(plain, start, end)


def _write_emoji(writer: _Writer, match: re.Match[str]) -> None:
    """Write the name of an emoji, twice if the emoji stands there more than once."""
    name, end = name_emoji(match["sign"]), match.end("sign")
    if name is None:
        writer.copy(match.start(), match.end())
        return
    writer.write_words(name, match.start(), end)
    if match["again"]:
        writer.write_words(name, end, match.end())


def is_emoticon(text: str, start: int, end: int) -> bool:
    """Return True if the emoticon at this place is no code, no closing bracket and no number to compare with."""
    emoticon, before = text[start:end], text[max(start - 60, 0) : start]
    if any("A" <= letter.upper() <= "Z" for letter in emoticon) and before and not before[-1].isspace():
        return False
    if emoticon[-1] in ")]" and emoticon[0] in ":;=" and before.rfind("(") > before.rfind(")"):
        return False
    return not (emoticon.startswith("<3") and text[end : end + 20].lstrip()[:1].isalnum())
