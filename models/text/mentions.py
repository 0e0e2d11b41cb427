"""The places where a text names an entity.

Spelling is compared after cleaning: without case, accents, width and script (traditional or simplified), with HTML
resolved, and with a hyphen like a space. A Latin name must be a whole word. A Chinese name may stand anywhere.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from models.text.rewriting import CLEANING, RewrittenText, rewrite
from models.text.traditional import SIMPLIFIED

MIN_PLURAL = 3
"""Letters of a name that may stand in the plural: `Toyotas` names `Toyota`, and `As` does not name `A`."""

_APOSTROPHES = "'‘’ʼ´"
_LEGAL_SIGNS = "™℠®©"
_BEFORE_NAME, _AFTER_NAME = " $#@\"'", " \"',.;:!?"
_SEPARATORS = re.compile(r"\s\s|[^\S ]|-")
_UNSPACED = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")


def find_mentions(text: str, entity: str) -> list[tuple[int, int]]:
    """Return the start and end of each mention of the entity in the text as sent, in order. The time is linear."""
    name = fold_name(entity)
    if not name:
        return []
    folded = _fold(text, name)
    mentions, place = [], folded.text.find(name)
    while place >= 0:
        end = place + len(name)
        if stands_alone(folded.text, place, end):
            mentions.append((place, end))
            place = folded.text.find(name, end)
        else:
            place = folded.text.find(name, place + 1)
    return folded.map_offsets(mentions)


def fold_name(entity: str) -> str:
    """Return the spelling by which an entity is compared: without the sign of a ticker, quotes and a possessive."""
    folded = _fold_characters(rewrite(entity, CLEANING)).text
    name = folded.lstrip(_BEFORE_NAME).rstrip(_AFTER_NAME).removesuffix("'s")
    return name or folded.strip()


def stands_alone(text: str, start: int, end: int) -> bool:
    """Return True unless a Latin word or a number goes on beyond `text[start:end]`; a plural does not count as more."""
    if start > 0 and _is_joined(text[start - 1], text[start]):
        return False
    if end == len(text) or not _is_joined(text[end - 1], text[end]):
        return True
    is_plural = text[end] == "s" and (end + 1 == len(text) or not _is_spaced(text[end + 1]))
    return is_plural and end - start >= MIN_PLURAL and text[end - 1].isalpha()


def _is_joined(left: str, right: str) -> bool:
    return _is_spaced(left) and _is_spaced(right)


def _is_spaced(character: str) -> bool:
    """Return True for letters and digits of scripts that put spaces between words."""
    return character.isalnum() and not _UNSPACED.match(character)


def _fold(text: str, name: str) -> RewrittenText:
    """Return the text in the spelling of `fold_name`, with offsets in the text as sent."""
    cleaned = rewrite(text, CLEANING)
    if cleaned.starts is None and text.isascii() and (" " not in name or not _SEPARATORS.search(text)):
        return RewrittenText(text.lower())
    return _fold_characters(cleaned)


def _fold_characters(cleaned: RewrittenText) -> RewrittenText:
    letters: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for index, character in enumerate(cleaned.text):
        start = index if cleaned.starts is None else cleaned.starts[index]
        end = index + 1 if cleaned.ends is None else cleaned.ends[index]
        for letter in _fold_character(character):
            if letter == " " and letters and (letters[-1] == " " or _UNSPACED.match(letters[-1])):
                continue
            if letters and letters[-1] == " " and _UNSPACED.match(letter):
                letters.pop(), starts.pop(), ends.pop()
            letters.append(letter)
            starts.append(start)
            ends.append(end)
    return RewrittenText("".join(letters), starts, ends)


@lru_cache(maxsize=16_384)
def _fold_character(character: str) -> str:
    if character in _APOSTROPHES:
        return "'"
    if character in _LEGAL_SIGNS:
        return ""
    folded = unicodedata.normalize("NFKD", SIMPLIFIED.get(character, character)).casefold()
    kinds = [(letter, unicodedata.category(letter)) for letter in folded]
    visible = ((letter, kind) for letter, kind in kinds if letter.isspace() or kind not in ("Mn", "Cf", "Cc"))
    return "".join(" " if letter.isspace() or kind == "Pd" else letter for letter, kind in visible)
