"""`heed pretrain`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.command import (
    TRAINING_PACKAGES,
    UNUSABLE,
    ConfigFile,
    TextFolder,
    TrackedBy,
    fail,
    open_tracker,
    require_packages,
)

if TYPE_CHECKING:
    from models.training.pretraining import DomainReport


def pretrain(
    base: Annotated[
        str, typer.Option(help="Encoder to start from: a folder in the layout of transformers, or a name on the hub.")
    ],
    texts: TextFolder,
    out: Annotated[Path, typer.Option(help="Folder for the pretrained base encoder.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of data sets. Texts like their validation rows are left out.", exists=True, file_okay=False
        ),
    ] = None,
    config: ConfigFile = None,
    track: TrackedBy = None,
) -> None:
    """Train a base encoder on plain texts, to predict hidden tokens. Run the same command again to resume.

    The files of --texts are those that the configuration names. The table shows for each domain how well hidden tokens
    of held-out texts are predicted, before and after.
    """
    require_packages("training", *TRAINING_PACKAGES)
    from models.data.training_files import require_files, text_files
    from models.networks.base_encoder import check_base_encoder
    from models.training import pretraining
    from models.training.classification import CONFIGS

    tracker = open_tracker(track)
    try:
        check_base_encoder(base)
        settings = pretraining.read_pretraining_config(config or CONFIGS / "pretraining.toml")
        require_files(text_files(texts, (source.name for source in settings.texts)))
        reports = pretraining.pretrain(settings, base, texts, data, out, tracker)
    except UNUSABLE as error:
        fail(error, 2)
    print(_render_reports(reports))
    print(f"Wrote {out}. Train with it: heed train sentiment --base {out} --data DATA --out runs/sentiment")


def _render_reports(reports: Sequence[DomainReport]) -> str:
    """Return the measures as a table in Markdown."""
    lines = [
        "| domain | language | texts | hidden tokens | accuracy before | after | perplexity before | after |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in reports:
        before, after = row.before, row.after
        figures = f"{before.accuracy:.3f} | {after.accuracy:.3f} | {before.perplexity:.1f} | {after.perplexity:.1f}"
        lines.append(f"| {row.domain} | {row.language} | {row.texts} | {row.tokens} | {figures} |")
    return "\n".join(lines)
