"""The sections of a bundle's card on explanations: how far each method can be trusted.

Faithfulness is measured after the export, so the sections go into the card of an existing bundle. This changes the
bundle's digest, but neither that of its graph nor those of heads and reply sets that depend on it.
"""

from __future__ import annotations

import re
from pathlib import Path
from shutil import copyfile

from models.bundle import CARD, Bundle, save_bundle
from models.evaluation.faithfulness import CURVES, MAX_FEATURES, RANDOM_ORDERS, TABLE
from models.evaluation.stability import STABILITY
from models.explain.methods import (
    DEFAULT_METHOD,
    FEATURE_NOUNS,
    MIN_TIMES_RANDOM,
    SUPPORTED_METHODS,
    ExplainableTask,
)
from models.export.card_template import load_template

LIMITS_HEADING = "## Limits\n"


def record_faithfulness(bundle: Bundle, task: ExplainableTask, rows: int, measured: Path) -> Bundle:
    """Write the results of `heed faithfulness` in the folder `measured` into the card. Earlier ones are replaced."""
    picture = f"explanations_{task}.png"
    copyfile(measured / CURVES, bundle.path / picture)
    section = load_template("explanations").substitute(
        task=task,
        parts=FEATURE_NOUNS[task],
        asked="histories" if task == "recommend" else "validation rows of each set, texts",
        orders=RANDOM_ORDERS,
        rows=rows,
        longest=MAX_FEATURES,
        picture=picture,
        auto=DEFAULT_METHOD,
        least=f"{MIN_TIMES_RANDOM:g}",
        offered=", ".join(SUPPORTED_METHODS[task]),
        faithfulness=(measured / TABLE).read_text(encoding="utf-8").strip(),
        stability=stability_section(measured / STABILITY),
    )
    card = bundle.path / CARD
    card.write_text(insert_section(card.read_text(encoding="utf-8"), section), encoding="utf-8")
    return save_bundle(bundle.path, bundle)


def insert_section(card: str, section: str) -> str:
    """Return the card with a section before its limits, or at its end. It replaces one with the same heading."""
    heading = section.partition("\n")[0]
    rest = re.sub(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", "", card, flags=re.MULTILINE | re.DOTALL)
    before, limits_heading, after = rest.partition(LIMITS_HEADING)
    return before + section + limits_heading + after


def stability_section(table: Path) -> str:
    """Return the section on stability, or nothing if it was not measured."""
    if not table.is_file():
        return ""
    return load_template("explanations_stability").substitute(table=table.read_text(encoding="utf-8"))
