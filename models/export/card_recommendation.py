"""The model card of a recommender bundle, in the model-card convention (Mitchell et al. 2019).

Every figure comes from the evaluation and the export that made the bundle. The prose is in `cards/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from models.bundle import Manifest
from models.evaluation.recommendation import COMMAND, RecommendationReport, recommendation_table
from models.export.card_template import load_template
from models.recommender_training.recommendation import RecommendRun


def render_recommendation_card(
    manifest: Manifest, measured: RecommendationReport, parity: Sequence[str], trained: RecommendRun
) -> str:
    histories = trained.config.histories
    scales = histories.scales if histories.choose_scales else None
    cold_start = {} if histories.newcomers is None else asdict(histories.newcomers)
    cold_start = {name: f"{weight:.2f}" for name, weight in cold_start.items()}
    return load_template(manifest.task.name).substitute(
        name=manifest.name,
        version=manifest.version,
        base=manifest.base,
        base_digest=manifest.base_digest,
        id_dropout=f"{histories.id_dropout:.0%}",
        seed=histories.seed,
        neighbours=histories.neighbours.kept,
        scales="" if scales is None else continue_list("recommend_score_weights", asdict(scales)),
        cold_start=continue_list("recommend_cold_start", cold_start) if cold_start else "",
        figures=recommendation_table(measured),
        command=COMMAND.format(name=manifest.name),
        parity="\n\n".join(parity),
    )


def continue_list(name: str, values: Mapping[str, object]) -> str:
    """Return a filled template that starts on a new line and has no line end."""
    return "\n" + load_template(name).substitute(values).rstrip("\n")
