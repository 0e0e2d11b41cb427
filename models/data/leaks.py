"""The removal of validation texts, their copies and their near-copies from training rows."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from models.data.classification import Example
from models.text.words import HAN

SHARED_WORDS = 8
"""Words in a row that make two texts near-copies."""

SHARED_CHARACTERS = 14
"""Chinese characters in a row that make two texts near-copies."""

LINK = re.compile(r"https?://\S+")
WORD = re.compile(r"[^\W_]+")


def deduplication_key(text: str) -> str:
    """Return the letters and digits of a text, without case, width or links. Copies of a text share it."""
    return "".join(character for character in plain_text(text) if character.isalnum())


def plain_text(text: str) -> str:
    return LINK.sub("", unicodedata.normalize("NFKC", text)).casefold()


def shingles(text: str) -> Iterator[str]:
    """Yield every eight words in a row of a text, and every fourteen characters of its Chinese."""
    plain = plain_text(text)
    words = [word for word in WORD.findall(plain) if not HAN.search(word)]
    for start in range(len(words) - SHARED_WORDS + 1):
        yield " ".join(words[start : start + SHARED_WORDS])
    characters = "".join(HAN.findall(plain))
    for start in range(len(characters) - SHARED_CHARACTERS + 1):
        yield characters[start : start + SHARED_CHARACTERS]


def remove_leaks(train: Sequence[Example], validation: Sequence[Example]) -> list[Example]:
    """Return the training rows that share no text with a validation row of any data set.

    Neither is a row's text that of a validation row, nor does it share eight words or fourteen Chinese characters in a
    row with one.
    """
    keys = {deduplication_key(example.text) for example in validation}
    held_out = {shingle for example in validation for shingle in shingles(example.text)}
    checked: dict[str, bool] = {}
    for example in train:
        if example.text not in checked:
            leaks = deduplication_key(example.text) in keys or not held_out.isdisjoint(shingles(example.text))
            checked[example.text] = not leaks
    return [example for example in train if checked[example.text]]
