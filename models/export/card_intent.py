"""The model card of a bundle of intents and replies, in the model-card convention (Mitchell et al. 2019).

Every figure in it comes from the evaluation and the export that made the bundle; the prose is here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import Template

from models.bundle import Manifest
from models.data.dialogues import LabelSet, ReplySet
from models.evaluation.intent import COMMAND, MeasuredBundle, intents_table
from models.prediction.intent_head_fit import GROUPS
from models.training.intent import IntentRun

HEADS = f"""\
- Heads are logistic regressions on the served graph's vectors, with a temperature that depends on the entropy (Balanya
  et al. 2024). Out of scope is decided by the geometric mean of two distances in a space whitened in part: to the
  nearest mean of an intent (Lee et al. 2018), and to the nearest of up to {GROUPS} groups of an intent's examples
  (k-means; as to the nearest example, Sun et al. 2022). It is given as the share of held-out texts that belong and are
  nearer; the threshold 0.95 turns away one in twenty of those.
"""

TEXT = Template("""\
# $name $version

What a customer wants at the newest turn of a chat, whether that is anything a bot knows, and which reply fits, in
English and Chinese. One encoder gives a vector for a text or a dialogue; a small head for each label set, and two
projections for replies, do the rest.

## Model
- A BERT encoder$student; the mean over the tokens of the newest turn, which earlier turns inform (over all tokens
  where there are none). Base: `$base` (SHA-256 of its weights `$base_digest`): intfloat/multilingual-e5-small (MIT),
  dequantised 4-bit, pruned vocabulary (60,000 Chinese and English pieces); never the original.
- Reads at most $max_tokens tokens; the oldest turns give way, whole. Dialogues in training: at most $trained_tokens.
- Trained with a large margin cosine loss (Wang et al. 2018); rows labelled out of scope were held as far from every
  intent (outlier exposure, Hendrycks et al. 2019). Replies by a dual encoder (Henderson et al. 2019) against the
  replies of the batch and those that the agent was offered and did not choose.
$heads\
- MultiDoGO's sentences have one label each but for two in a thousand, so its head is single-label and the first counts.
  Labels that mean the same in all six domains are shared, the others are named `domain/intent`. So it is in DSTC11,
  whose 76 labels are those of three firms' bots and have 66 meanings. With all 76 apart, such a head is right on 0.897
  of the 234 rows, and 13 of its 24 errors name the same intent of another firm.

## Intended use
Routing and assistance in customer service, where a person can take over. Not for decisions about people, not for
languages other than English and Chinese.

## Training data
| data set | language | licence as stated |
|---|---|---|
$data

Sets whose licence reads "research data, no stated licence" were used as published research data; check their terms
before you use weights trained on them commercially. Rows that are also validation rows were left out of training.

Trained and distilled with `heed train intent` and `heed distill intent` and `models/configs/intent.toml`, seed $seed,
exported with `heed export`.

## Figures
On the validation files, from `model.int8.onnx` and the heads as they are served. Temperatures and thresholds come from
these same files, so beside the calibration error (ECE, 15 bins) stands that of temperatures fitted on the other four
fifths of the rows, and what chance alone leaves on so many rows were every confidence faultless. Test files were never
read.

$figures

MultiDoGO's validation file is that of the paper's splits (Peskov et al. 2019). The paper's own figures, its table 7,
are of a model for each domain on the test files; they were not at hand, so none stand here.

Reproduce with `$command`.

$drift

## Limits
- The heads' own sets shaped the encoder, so their figures say nothing of new intents.
- Context was learned from MultiDoGO, which has only the customer's turns, and from STAR and CrossWOZ, which have no
  labels of this kind; labelled Chinese dialogues were not at hand.
- A text between two intents is often in scope with low confidence rather than out of scope.

## Attribution
BANKING77 (Casanueva et al. 2020, CC-BY-4.0), CLINC150 (Larson et al. 2019, CC-BY-3.0), DSTC11 track 2 (Gung et al.
2023), MultiDoGO (Peskov et al. 2019), STAR (Mosig et al. 2020), CrossWOZ (Zhu et al. 2020), SMP-ECDT,
multilingual-e5 (Wang et al. 2024).
""")


def card(manifest: Manifest, measured: MeasuredBundle, drift: Sequence[str], trained: IntentRun) -> str:
    config = trained.config
    sources: list[LabelSet | ReplySet] = [*config.label_sets, *config.reply_sets]
    return TEXT.substitute(
        name=manifest.name,
        version=manifest.version,
        student=f" of {len(trained.layers)} layers, taught by one of twelve" if trained.layers else "",
        base=manifest.base,
        base_digest=manifest.base_digest,
        max_tokens=manifest.max_tokens,
        trained_tokens=config.max_tokens,
        heads=HEADS,
        data="\n".join(f"| {own.name} | {own.language} | {own.licence} |" for own in sources),
        seed=config.seed,
        figures=intents_table(measured),
        command=COMMAND.format(name=manifest.name),
        drift="\n\n".join(drift),
    )


def with_heads(text: str, measured: MeasuredBundle) -> str:
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
    return re.sub(r"^- Heads are\b.*?(?=^- )", lambda _: HEADS, text, flags=re.MULTILINE | re.DOTALL)
