"""The language of a text, and whether it has any text at all."""

from __future__ import annotations

import re
import unicodedata

from models.text.words import HAN

LATIN = re.compile("[A-Za-z]")


def has_text(text: str) -> bool:
    """Whether any character is more than white space, a control or an invisible format character."""
    return any(not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf") for c in text)


def detect_language(text: str) -> str:
    """`zh` when Chinese characters carry the text, else `en`; one Chinese character weighs about a short word."""
    han = len(HAN.findall(text))
    return "zh" if han and han * 4 >= len(LATIN.findall(text)) else "en"
