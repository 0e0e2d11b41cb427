"""The prose of model cards: templates with a placeholder for each figure."""

from __future__ import annotations

from pathlib import Path
from string import Template

CARDS = Path(__file__).parent / "cards"


def load_template(name: str) -> Template:
    """Return the template of a task, or of a section that cards share, by the name of its file."""
    return Template((CARDS / f"{name}.md").read_text(encoding="utf-8"))
