"""The sections of a bundle's card on behaviour and explanations: which texts it gets wrong, how far to trust a method.

They are measured after the export, so they go into the card of an existing bundle. This changes the
bundle's digest, but neither that of its graph nor those of heads and reply sets that depend on it.
"""

from __future__ import annotations

from pathlib import Path
from shutil import copyfile

from models.behaviour.report import BehaviourReport, behaviour_table
from models.bundle import Bundle
from models.evaluation.faithfulness import CURVES, MAX_FEATURES, RANDOM_ORDERS, TABLE
from models.evaluation.stability import STABILITY
from models.explain.methods import (
    DEFAULT_METHOD,
    FEATURE_NOUNS,
    MIN_TIMES_RANDOM,
    SUPPORTED_METHODS,
    ExplainableTask,
)
from models.export.card_template import load_template, record_section


def record_behaviour(bundle: Bundle, report: BehaviourReport) -> Bundle:
    """Write the capability tests of a bundle into its card. Earlier ones are replaced."""
    section = load_template("behaviour").substitute(
        name=bundle.name, seed=report.seed, fillings=report.per_template, tables=behaviour_table(report)
    )
    return record_section(bundle, section)


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
    return record_section(bundle, section)


def stability_section(table: Path) -> str:
    """Return the section on stability, or nothing if it was not measured."""
    if not table.is_file():
        return ""
    return load_template("explanations_stability").substitute(table=table.read_text(encoding="utf-8"))
