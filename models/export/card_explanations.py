"""What a bundle's card says of its explanations: how far each method is to be trusted, as it was measured.

Measured after the export, so these sections are put into the card of a bundle that exists; an export writes a card
without them. The bundle's own digest changes by it, those of its graph and of all that is bound to that do not.
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

BEFORE = "## Limits\n"


def record_faithfulness(bundle: Bundle, task: ExplainableTask, rows: int, measured: Path) -> Bundle:
    """Put what `heed faithfulness` wrote to the folder `measured` into the card, in place of what it said before."""
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
        stability=stability_of(measured / STABILITY),
    )
    card = bundle.path / CARD
    card.write_text(with_section(card.read_text(encoding="utf-8"), section), encoding="utf-8")
    return save_bundle(bundle.path, bundle)


def with_section(card: str, section: str) -> str:
    """The card with a section before its limits, or at its end without any, in place of that of the same heading."""
    heading = section.partition("\n")[0]
    rest = re.sub(rf"^{re.escape(heading)}\n.*?(?=^## |\Z)", "", card, flags=re.MULTILINE | re.DOTALL)
    before, found, after = rest.partition(BEFORE)
    return before + section + found + after


def stability_of(table: Path) -> str:
    """What was measured of it, if it was."""
    if not table.is_file():
        return ""
    return load_template("explanations_stability").substitute(table=table.read_text(encoding="utf-8"))
