"""The model card of an intent bundle, in the model-card convention (Mitchell et al. 2019).

Every figure comes from the evaluation and the export that made the bundle. The prose is in `cards/`.
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


def describe_heads() -> str:
    """Return the paragraph on heads, which all cards of intents share."""
    return load_template("intent_heads").substitute(groups=MAX_GROUPS_PER_INTENT)


def render_intent_card(
    manifest: Manifest, measured: IntentBundleReport, parity: Sequence[str], trained: IntentRun
) -> str:
    config = trained.config
    sources: list[LabelSet | ReplySet] = [*config.label_sets, *config.reply_sets]
    return load_template(manifest.task.name).substitute(
        name=manifest.name,
        version=manifest.version,
        student=f" of {len(trained.layers)} layers, distilled from one of twelve" if trained.layers else "",
        base=manifest.base,
        base_digest=manifest.base_digest,
        max_tokens=manifest.max_tokens,
        trained_tokens=config.max_tokens,
        heads=describe_heads().rstrip("\n"),
        data="\n".join(f"| {source.name} | {source.language} | {source.licence} |" for source in sources),
        seed=config.seed,
        figures=intents_table(measured),
        command=COMMAND.format(name=manifest.name),
        parity="\n\n".join(parity),
    )


def update_heads(card: str, measured: IntentBundleReport) -> str:
    """Return a card with the paragraph on heads and the measured rows of its tables written anew.

    Raises ValueError if the card lacks one of the rows.
    """
    for line in intents_table(measured).splitlines():
        row = re.match(r"\| (\S+) \| [\d,]+ \|", line)
        if row is None:
            continue
        card, count = re.subn(rf"^\| {re.escape(row[1])} \| [\d,]+ \|.*$", lambda _: line, card, flags=re.MULTILINE)  # noqa: B023
        if count != 1:
            raise ValueError(f"the card has {count} rows of figures for {row[1]}")
    paragraph = describe_heads()
    return re.sub(r"^- Heads are\b.*?(?=^- )", lambda _: paragraph, card, flags=re.MULTILINE | re.DOTALL)
