"""The model card of a recommender bundle, in the model-card convention (Mitchell et al. 2019).

Every figure in it comes from the evaluation and the export that made the bundle; the prose is in `cards/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from models.bundle import Manifest
from models.evaluation.recommendation import COMMAND, RecommendationReport, recommend_table
from models.export.card_template import load_template
from models.training.recommendation import RecommendRun


def render_recommendation_card(
    manifest: Manifest, measured: RecommendationReport, drift: Sequence[str], trained: RecommendRun
) -> str:
    histories = trained.config.histories
    scales = histories.scales if histories.choose_scales else None
    worth = {} if histories.newcomers is None else asdict(histories.newcomers)
    return load_template(manifest.task.name).substitute(
        name=manifest.name,
        version=manifest.version,
        base=manifest.base,
        base_digest=manifest.base_digest,
        id_dropout=f"{histories.id_dropout:.0%}",
        seed=histories.seed,
        neighbours=histories.neighbours.kept,
        scales="" if scales is None else more("recommend_scales", asdict(scales)),
        newcomers=more("recommend_newcomers", {name: f"{one:.2f}" for name, one in worth.items()}) if worth else "",
        figures=recommend_table(measured),
        command=COMMAND.format(name=manifest.name),
        drift="\n\n".join(drift),
    )


def more(name: str, values: Mapping[str, object]) -> str:
    """Lines that go on after one that has no end."""
    return "\n" + load_template(name).substitute(values).rstrip("\n")
