"""The prose of model cards: templates with a placeholder for each figure, and sections that come after the export."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from models.bundle import CARD, Bundle, save_bundle

CARDS = Path(__file__).parent / "cards"
LIMITS_HEADING = "## Limits\n"


def load_template(name: str) -> Template:
    """Return the template of a task, or of a section that cards share, by the name of its file."""
    return Template((CARDS / f"{name}.md").read_text(encoding="utf-8"))


def record_section(bundle: Bundle, section: str) -> Bundle:
    """Write a section into the card of a bundle, and return the bundle with its new digest."""
    card = bundle.path / CARD
    card.write_text(insert_section(card.read_text(encoding="utf-8"), section), encoding="utf-8")
    return save_bundle(bundle.path, bundle)


def insert_section(card: str, section: str) -> str:
    """Return the card with a section before its limits, or at its end. It replaces one with the same heading."""
    heading = section.partition("\n")[0]
    rest = re.sub(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", "", card, flags=re.MULTILINE | re.DOTALL)
    before, limits_heading, after = rest.partition(LIMITS_HEADING)
    return before + section + limits_heading + after
