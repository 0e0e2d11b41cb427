"""Evaluation of a bundle of intents and replies on the validation files, from the graph and the heads that serve.

Knows runtimes, heads and dialogues; prints nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import KFold

from models.bundle import Bundle, Metric
from models.data.dialogues import (
    LabelSet,
    ReplyExample,
    ReplySet,
    Utterance,
    load_shipped_sets,
    read_reply_examples,
    read_reply_templates,
    read_utterances,
)
from models.prediction.calibration import log_softmax, scale_logits
from models.prediction.calibration_fit import chosen, expected_calibration_error, expected_error_by_chance
from models.prediction.intent_head import IntentHead, load_bundle_heads, predict_intents
from models.prediction.intent_head_fit import FOLDS, fit_temperature, logits_and_distances
from models.prediction.reply_ranker import RANKER, ReplyRanker, load_ranker
from models.runtime.offline import TextEncoder, open_text_encoder
from models.runtime.protocol import Device

COMMAND = "heed evaluate intent --bundle models/bundles/{name} --data DATA"
SHORT_WORDS = 3
"""Turns of so many words or fewer say little without what came before them."""


@dataclass(frozen=True, slots=True)
class IntentReport:
    """One label set's figures on its validation rows; `auroc` and `recall` are None where no row is out of scope.

    `ece` is of the head as it serves, whose scaling was fitted on these rows; `ece_crossfit` of one that was fitted on
    the other four fifths of them, None for a handful; `ece_chance` is what confidences without any fault come to on so
    many rows. `recall` is the share of rows out of scope that the head's own threshold finds, `rejected` that of the
    others which it turns away.
    """

    name: str
    rows: int
    accuracy: float
    macro_f1: float
    ece: float
    ece_crossfit: float | None
    ece_chance: float
    rejected: float
    auroc: float | None
    recall: float | None


@dataclass(frozen=True, slots=True)
class ContextReport:
    """Macro-F1 of dialogues with what came before the turn and without, of all turns and of short ones."""

    part: str
    rows: int
    macro_f1: float
    alone: float
    short_rows: int
    short_macro_f1: float
    short_alone: float


@dataclass(frozen=True, slots=True)
class ReplyReport:
    """How often the reply that was given is first among those offered, and among the first of all templates."""

    rows: int
    first_offered: float
    templates: int
    recall_1: float
    recall_5: float


def measure_intents(head: IntentHead, vectors: NDArray[np.float32], rows: Sequence[Utterance]) -> IntentReport:
    verdicts = predict_intents(head, vectors)
    inside = np.asarray([row.label is not None for row in rows])
    truth = [row.label for row in rows if row.label is not None]
    confidences = verdicts.confidences[inside]
    answers = [head.labels[place] for place in confidences.argmax(axis=1)]
    numbers = np.asarray([head.labels.index(label) if label in head.labels else -1 for label in truth])
    outside = verdicts.out_of_scope_scores > head.threshold
    strange = bool((~inside).any())
    return IntentReport(
        name=head.name,
        rows=len(rows),
        accuracy=float(np.mean([one == other for one, other in zip(truth, answers, strict=True)])),
        macro_f1=macro_f1(truth, answers),
        ece=expected_calibration_error(*chosen(confidences, numbers)),
        ece_crossfit=cross_fitted_error(logits_and_distances(head, vectors[inside])[0], numbers),
        ece_chance=expected_error_by_chance(confidences.max(axis=1)),
        rejected=float(outside[inside].mean()),
        auroc=float(roc_auc_score(~inside, verdicts.out_of_scope_scores)) if strange else None,
        recall=float(outside[~inside].mean()) if strange else None,
    )


def cross_fitted_error(logits: NDArray[np.float64], numbers: NDArray[np.int64]) -> float | None:
    """The calibration error with each fold under the scaling of the others; -1 is an intent that the head lacks."""
    if (numbers >= 0).sum() < 2 * FOLDS:
        return None
    confidences = np.empty_like(logits)
    for others, own in KFold(FOLDS, shuffle=True, random_state=0).split(logits):
        known = others[numbers[others] >= 0]
        confidences[own] = np.exp(
            log_softmax(scale_logits(logits[own], *fit_temperature(logits[known], numbers[known])))
        )
    return expected_calibration_error(*chosen(confidences, numbers))


def measure_context(
    head: IntentHead, reader: TextEncoder, vectors: NDArray[np.float32], rows: Sequence[Utterance]
) -> list[ContextReport]:
    """Of all rows, and of those of each domain."""
    alone = reader.encode_dialogues([row.turns[-1:] for row in rows])
    answers = np.asarray([labels_of(head, found) for found in (vectors, alone)])
    truth = np.asarray([row.label for row in rows])
    short = np.asarray([len(row.turns[-1].text.split()) <= SHORT_WORDS for row in rows])
    domains = np.asarray([row.split for row in rows])
    found = []
    for part in ("all", *sorted(set(domains.tolist()))):
        own = np.ones(len(rows), bool) if part == "all" else domains == part
        few = own & short
        whole, cut, short_whole, short_cut = (macro_f1(truth[of], given[of]) for of in (own, few) for given in answers)
        found.append(ContextReport(part, int(own.sum()), whole, cut, int(few.sum()), short_whole, short_cut))
    return found


def labels_of(head: IntentHead, vectors: NDArray[np.float32]) -> list[str]:
    return [head.labels[place] for place in predict_intents(head, vectors).confidences.argmax(axis=1)]


def macro_f1(truth: Sequence[str] | NDArray[np.str_], answers: Sequence[str] | NDArray[np.str_]) -> float:
    """Over the labels that occur in the rows."""
    return float(f1_score(truth, answers, labels=sorted(set(truth)), average="macro", zero_division=0.0))


def measure_replies(
    ranker: ReplyRanker, reader: TextEncoder, exchanges: Sequence[ReplyExample], templates: Sequence[str]
) -> ReplyReport:
    vectors = reader.encode_dialogues([one.turns for one in exchanges])
    placed = ranker.project_replies(reader.encode_texts(templates))
    place = {text: number for number, text in enumerate(templates)}
    firsts, ranks = [], []
    for one, vector in zip(exchanges, vectors, strict=True):
        scores = ranker.scores(vector, placed)
        right = scores[place[str(one.template)]]
        ranks.append(int((scores > right).sum()))
        if len(one.options) > 1:
            firsts.append(right >= max(scores[place[text]] for text in one.options))
    found = np.asarray(ranks)
    return ReplyReport(
        rows=len(exchanges),
        first_offered=float(np.mean(firsts)),
        templates=len(templates),
        recall_1=float((found < 1).mean()),
        recall_5=float((found < 5).mean()),
    )


@dataclass(frozen=True, slots=True)
class IntentBundleReport:
    intents: tuple[IntentReport, ...]
    context: tuple[ContextReport, ...]
    replies: tuple[ReplyReport, ...]


def evaluate_intents(
    heads: dict[str, IntentHead],
    ranker: ReplyRanker,
    reader: TextEncoder,
    data: Path,
    label_sets: Sequence[LabelSet],
    reply_sets: Sequence[ReplySet],
) -> IntentBundleReport:
    intents, context = [], []
    for source in label_sets:
        rows = read_utterances(data, source, "validation")
        vectors = reader.encode_dialogues([row.turns for row in rows])
        intents.append(measure_intents(heads[source.name], vectors, rows))
        if source.kind == "multidogo":
            context += measure_context(heads[source.name], reader, vectors, rows)
    replies = [
        measure_replies(
            ranker, reader, read_reply_examples(data, source, "validation"), read_reply_templates(data, source)
        )
        for source in reply_sets
        if source.kind == "star"
    ]
    return IntentBundleReport(tuple(intents), tuple(context), tuple(replies))


def evaluate_intent_bundle(bundle: Bundle, data: Path, device: Device = "cpu") -> IntentBundleReport:
    """A bundle's own heads and ranker on the validation files of the shipped sets; raises as `open_runtime`."""
    heads, ranker = load_bundle_heads(bundle.path, bundle.encoder_digest), load_ranker(bundle.path / RANKER)
    label_sets, reply_sets = load_shipped_sets()
    known = [source for source in label_sets if source.name in heads]
    return evaluate_intents(heads, ranker, open_text_encoder(bundle, device), data, known, reply_sets)


def metrics_of_intents(name: str, measured: IntentBundleReport, languages: dict[str, str]) -> tuple[Metric, ...]:
    def told() -> Iterator[tuple[str, str, str, float | None]]:
        for one in measured.intents:
            for figure in ("accuracy", "macro_f1", "ece", "ece_crossfit", "ece_chance", "auroc", "recall"):
                yield one.name, languages[one.name], figure, getattr(one, figure)
        for two in measured.replies:
            for figure in ("first_offered", "recall_1", "recall_5"):
                yield "star", "en", figure, getattr(two, figure)

    command = COMMAND.format(name=name)
    return tuple(Metric(a, b, c, round(value, 6), command) for a, b, c, value in told() if value is not None)


def intents_table(measured: IntentBundleReport) -> str:
    """Markdown tables of the figures."""

    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    lines = [
        "| label set | rows | accuracy | macro-F1 | ECE | cross-fitted | by chance "
        "| in scope, turned away | out of scope, AUROC | found |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {one.name} | {one.rows:,} | {one.accuracy:.3f} | {one.macro_f1:.3f} "
            f"| {one.ece:.3f} | {cell(one.ece_crossfit)} | {one.ece_chance:.3f} "
            f"| {one.rejected:.3f} | {cell(one.auroc)} | {cell(one.recall)} |"
            for one in measured.intents
        ),
        "",
        f"| multidogo | turns | macro-F1 | newest turn alone | turns of up to {SHORT_WORDS} words | macro-F1 | alone |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {one.part} | {one.rows:,} | {one.macro_f1:.3f} | {one.alone:.3f} "
            f"| {one.short_rows:,} | {one.short_macro_f1:.3f} | {one.short_alone:.3f} |"
            for one in measured.context
        ),
        "",
        "| replies | rows | first among those offered | templates | recall@1 | recall@5 |",
        "|---|--:|--:|--:|--:|--:|",
        *(
            f"| star | {one.rows:,} | {one.first_offered:.3f} | {one.templates} | {one.recall_1:.3f} "
            f"| {one.recall_5:.3f} |"
            for one in measured.replies
        ),
    ]
    return "\n".join(lines)


def write_intents(measured: IntentBundleReport, out: Path) -> None:
    """`evaluation.json` and `evaluation.md` in the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(asdict(measured), indent=1) + "\n", encoding="utf-8")
    (out / "evaluation.md").write_text(intents_table(measured) + "\n", encoding="utf-8")
