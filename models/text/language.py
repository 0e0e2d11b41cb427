"""Language detection, and the check for a text without visible characters."""

from __future__ import annotations

import re
import unicodedata

from models.text.foreign import is_foreign
from models.text.words import HAN

OTHER = "other"
"""The name of every language that is neither English nor Chinese."""

LATIN = re.compile("[A-Za-z]")


def has_text(text: str) -> bool:
    """Return True if any character is more than white space, a control or an invisible format character."""
    return any(not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf") for c in text)


def detect_language(text: str) -> str:
    """Return `zh` if Chinese characters carry the text, else `en`.

    A Chinese character counts about as much as a short English word, so it is weighed against four Latin letters.
    """
    han = len(HAN.findall(text))
    return "zh" if han and han * 4 >= len(LATIN.findall(text)) else "en"


def name_language(text: str) -> str:
    """Return the language to tell a caller: `en`, `zh`, or `other` for a text that models do not know."""
    return OTHER if is_foreign(text) else detect_language(text)
