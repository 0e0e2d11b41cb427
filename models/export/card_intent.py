"""The model card of a bundle of intents and replies, in the model-card convention (Mitchell et al. 2019).

Every figure in it comes from the evaluation and the export that made the bundle; the prose is in `cards/`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from models.bundle import Manifest
from models.data.dialogues import LabelSet, ReplySet
from models.evaluation.intent import COMMAND, IntentBundleReport, intents_table
from models.export.card_template import load_template
from models.prediction.intent_head_fit import MAX_GROUPS_PER_INTENT
from models.training.intent import IntentRun


def heads_said() -> str:
    """What heads are, as every such card says it."""
    return load_template("intent_heads").substitute(groups=MAX_GROUPS_PER_INTENT)


def render_intent_card(
    manifest: Manifest, measured: IntentBundleReport, drift: Sequence[str], trained: IntentRun
) -> str:
    config = trained.config
    sources: list[LabelSet | ReplySet] = [*config.label_sets, *config.reply_sets]
    return load_template(manifest.task.name).substitute(
        name=manifest.name,
        version=manifest.version,
        student=f" of {len(trained.layers)} layers, taught by one of twelve" if trained.layers else "",
        base=manifest.base,
        base_digest=manifest.base_digest,
        max_tokens=manifest.max_tokens,
        trained_tokens=config.max_tokens,
        heads=heads_said().rstrip("\n"),
        data="\n".join(f"| {own.name} | {own.language} | {own.licence} |" for own in sources),
        seed=config.seed,
        figures=intents_table(measured),
        command=COMMAND.format(name=manifest.name),
        drift="\n\n".join(drift),
    )


def with_heads(text: str, measured: IntentBundleReport) -> str:
    """A card of heads that were made anew: with what they are and the rows of its tables that were measured.

    Raises ValueError where it has no such row.
    """
    for line in intents_table(measured).splitlines():
        found = re.match(r"\| (\S+) \| [\d,]+ \|", line)
        if found is None:
            continue
        text, count = re.subn(rf"^\| {re.escape(found[1])} \| [\d,]+ \|.*$", lambda _: line, text, flags=re.MULTILINE)  # noqa: B023
        if count != 1:
            raise ValueError(f"the card has {count} rows of figures for {found[1]}")
    said = heads_said()
    return re.sub(r"^- Heads are\b.*?(?=^- )", lambda _: said, text, flags=re.MULTILINE | re.DOTALL)
