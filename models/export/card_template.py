"""The prose of model cards, files beside this one with a place for each figure."""

from __future__ import annotations

from pathlib import Path
from string import Template

CARDS = Path(__file__).parent / "cards"


def load_template(name: str) -> Template:
    """That of a task, or a part that cards share, by the name of its file."""
    return Template((CARDS / f"{name}.md").read_text(encoding="utf-8"))
