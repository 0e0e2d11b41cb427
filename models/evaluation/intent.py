"""Evaluation of an intent bundle on validation files, with the graph, the heads and the reply ranker that serve.

Knows runtimes, heads and dialogues. Prints nothing.
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
from models.prediction.calibration_fit import expected_calibration_error, expected_error_by_chance, top_confidences
from models.prediction.intent_head import IntentHead, load_bundle_heads, predict_intents
from models.prediction.intent_head_fit import FOLDS, fit_temperature, logits_and_distances
from models.prediction.reply_ranker import RANKER, ReplyRanker, load_ranker
from models.runtime.offline import TextEncoder, open_text_encoder
from models.runtime.protocol import Device

COMMAND = "heed evaluate intent --bundle models/bundles/{name} --data DATA"
SHORT_WORDS = 3
"""The number of words of a short turn at most. Short turns depend on the turns before them."""


@dataclass(frozen=True, slots=True)
class IntentReport:
    """The figures for one label set on its validation rows.

    `ece` is the error of the served head, whose scaling was fitted on these rows. `ece_crossfit` fits the scaling on
    the remaining four fifths of the rows, and is None if there are too few. `ece_chance` is the expected error of
    perfect confidences on the same number of rows.

    The head's threshold rejects rows: `recall` is the rejected share of the rows out of scope, `rejected` that of the
    rows in scope. `auroc` and `recall` are None if no row is out of scope.
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
    """Macro-F1 with the turns before the newest one and without (`alone`), over all turns and over short ones."""

    part: str
    rows: int
    macro_f1: float
    alone: float
    short_rows: int
    short_macro_f1: float
    short_alone: float


@dataclass(frozen=True, slots=True)
class ReplyReport:
    """The accuracy of the agent's reply among those offered, and its recall among all templates."""

    rows: int
    first_offered: float
    templates: int
    recall_1: float
    recall_5: float


def measure_intents(head: IntentHead, vectors: NDArray[np.float32], rows: Sequence[Utterance]) -> IntentReport:
    predictions = predict_intents(head, vectors)
    in_scope = np.asarray([row.label is not None for row in rows])
    truth = [row.label for row in rows if row.label is not None]
    confidences = predictions.confidences[in_scope]
    answers = [head.labels[index] for index in confidences.argmax(axis=1)]
    indices = np.asarray([head.labels.index(label) if label in head.labels else -1 for label in truth])
    rejected = predictions.out_of_scope_scores > head.threshold
    any_out_of_scope = bool((~in_scope).any())
    return IntentReport(
        name=head.name,
        rows=len(rows),
        accuracy=float(np.mean([label == answer for label, answer in zip(truth, answers, strict=True)])),
        macro_f1=macro_f1(truth, answers),
        ece=expected_calibration_error(*top_confidences(confidences, indices)),
        ece_crossfit=cross_fitted_error(logits_and_distances(head, vectors[in_scope])[0], indices),
        ece_chance=expected_error_by_chance(confidences.max(axis=1)),
        rejected=float(rejected[in_scope].mean()),
        auroc=float(roc_auc_score(~in_scope, predictions.out_of_scope_scores)) if any_out_of_scope else None,
        recall=float(rejected[~in_scope].mean()) if any_out_of_scope else None,
    )


def cross_fitted_error(logits: NDArray[np.float64], indices: NDArray[np.int64]) -> float | None:
    """Return the calibration error with each fold under the scaling fitted on the remaining folds.

    Returns None if there are too few rows. `indices` (rows,) are label indices, -1 for an intent that the head lacks.
    """
    if (indices >= 0).sum() < 2 * FOLDS:
        return None
    confidences = np.empty_like(logits)
    for training, fold in KFold(FOLDS, shuffle=True, random_state=0).split(logits):
        known = training[indices[training] >= 0]
        confidences[fold] = np.exp(
            log_softmax(scale_logits(logits[fold], *fit_temperature(logits[known], indices[known])))
        )
    return expected_calibration_error(*top_confidences(confidences, indices))


def measure_context(
    head: IntentHead, encoder: TextEncoder, vectors: NDArray[np.float32], rows: Sequence[Utterance]
) -> list[ContextReport]:
    """Measure all rows, and the rows of each domain. `vectors` (rows, width) are those of the whole dialogues."""
    newest = encoder.encode_dialogues([row.turns[-1:] for row in rows])
    answers = np.asarray([labels_of(head, encoded) for encoded in (vectors, newest)])
    truth = np.asarray([row.label for row in rows])
    is_short = np.asarray([len(row.turns[-1].text.split()) <= SHORT_WORDS for row in rows])
    domains = np.asarray([row.split for row in rows])
    reports = []
    for domain in ("all", *sorted(set(domains.tolist()))):
        mask = np.ones(len(rows), bool) if domain == "all" else domains == domain
        short = mask & is_short
        full_f1, newest_f1, short_full_f1, short_newest_f1 = (
            macro_f1(truth[subset], answered[subset]) for subset in (mask, short) for answered in answers
        )
        reports.append(
            ContextReport(domain, int(mask.sum()), full_f1, newest_f1, int(short.sum()), short_full_f1, short_newest_f1)
        )
    return reports


def labels_of(head: IntentHead, vectors: NDArray[np.float32]) -> list[str]:
    return [head.labels[index] for index in predict_intents(head, vectors).confidences.argmax(axis=1)]


def macro_f1(truth: Sequence[str] | NDArray[np.str_], answers: Sequence[str] | NDArray[np.str_]) -> float:
    """Return the macro-F1 over the labels that occur in the rows."""
    return float(f1_score(truth, answers, labels=sorted(set(truth)), average="macro", zero_division=0.0))


def measure_replies(
    ranker: ReplyRanker, encoder: TextEncoder, exchanges: Sequence[ReplyExample], templates: Sequence[str]
) -> ReplyReport:
    vectors = encoder.encode_dialogues([exchange.turns for exchange in exchanges])
    projected = ranker.project_replies(encoder.encode_texts(templates))
    index_by_template = {text: index for index, text in enumerate(templates)}
    is_first, ranks = [], []
    for exchange, vector in zip(exchanges, vectors, strict=True):
        scores = ranker.score_replies(vector, projected)
        score = scores[index_by_template[str(exchange.template)]]
        ranks.append(int((scores > score).sum()))
        if len(exchange.options) > 1:
            is_first.append(score >= max(scores[index_by_template[text]] for text in exchange.options))
    template_ranks = np.asarray(ranks)
    return ReplyReport(
        rows=len(exchanges),
        first_offered=float(np.mean(is_first)),
        templates=len(templates),
        recall_1=float((template_ranks < 1).mean()),
        recall_5=float((template_ranks < 5).mean()),
    )


@dataclass(frozen=True, slots=True)
class IntentBundleReport:
    """The figures for an intent bundle: its label sets, the effect of context, and its replies."""

    intents: tuple[IntentReport, ...]
    context: tuple[ContextReport, ...]
    replies: tuple[ReplyReport, ...]


def evaluate_intents(
    heads: dict[str, IntentHead],
    ranker: ReplyRanker,
    encoder: TextEncoder,
    data: Path,
    label_sets: Sequence[LabelSet],
    reply_sets: Sequence[ReplySet],
) -> IntentBundleReport:
    intents, context = [], []
    for source in label_sets:
        rows = read_utterances(data, source, "validation")
        vectors = encoder.encode_dialogues([row.turns for row in rows])
        intents.append(measure_intents(heads[source.name], vectors, rows))
        if source.kind == "multidogo":
            context += measure_context(heads[source.name], encoder, vectors, rows)
    replies = [
        measure_replies(
            ranker, encoder, read_reply_examples(data, source, "validation"), read_reply_templates(data, source)
        )
        for source in reply_sets
        if source.kind == "star"
    ]
    return IntentBundleReport(tuple(intents), tuple(context), tuple(replies))


def evaluate_intent_bundle(bundle: Bundle, data: Path, device: Device = "cpu") -> IntentBundleReport:
    """Evaluate a bundle's heads and ranker on the validation files of the shipped sets.

    Raises RuntimeError as `open_runtime` does.
    """
    heads, ranker = load_bundle_heads(bundle.path, bundle.encoder_digest), load_ranker(bundle.path / RANKER)
    label_sets, reply_sets = load_shipped_sets()
    known = [source for source in label_sets if source.name in heads]
    return evaluate_intents(heads, ranker, open_text_encoder(bundle, device), data, known, reply_sets)


def metrics_of_intents(name: str, measured: IntentBundleReport, languages: dict[str, str]) -> tuple[Metric, ...]:
    """Return the figures that go into the bundle's manifest."""

    def figures() -> Iterator[tuple[str, str, str, float | None]]:
        for intents in measured.intents:
            for figure in ("accuracy", "macro_f1", "ece", "ece_crossfit", "ece_chance", "auroc", "recall"):
                yield intents.name, languages[intents.name], figure, getattr(intents, figure)
        for replies in measured.replies:
            for figure in ("first_offered", "recall_1", "recall_5"):
                yield "star", "en", figure, getattr(replies, figure)

    command = COMMAND.format(name=name)
    return tuple(
        Metric(dataset, language, figure, round(value, 6), command)
        for dataset, language, figure, value in figures()
        if value is not None
    )


def intents_table(measured: IntentBundleReport) -> str:
    """Return Markdown tables of the figures."""

    def cell(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    lines = [
        "| label set | rows | accuracy | macro-F1 | ECE | cross-fitted | by chance "
        "| in scope, turned away | out of scope, AUROC | found |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {row.name} | {row.rows:,} | {row.accuracy:.3f} | {row.macro_f1:.3f} "
            f"| {row.ece:.3f} | {cell(row.ece_crossfit)} | {row.ece_chance:.3f} "
            f"| {row.rejected:.3f} | {cell(row.auroc)} | {cell(row.recall)} |"
            for row in measured.intents
        ),
        "",
        f"| multidogo | turns | macro-F1 | newest turn alone | turns of up to {SHORT_WORDS} words | macro-F1 | alone |",
        "|---|--:|--:|--:|--:|--:|--:|",
        *(
            f"| {row.part} | {row.rows:,} | {row.macro_f1:.3f} | {row.alone:.3f} "
            f"| {row.short_rows:,} | {row.short_macro_f1:.3f} | {row.short_alone:.3f} |"
            for row in measured.context
        ),
        "",
        "| replies | rows | first among those offered | templates | recall@1 | recall@5 |",
        "|---|--:|--:|--:|--:|--:|",
        *(
            f"| star | {row.rows:,} | {row.first_offered:.3f} | {row.templates} | {row.recall_1:.3f} "
            f"| {row.recall_5:.3f} |"
            for row in measured.replies
        ),
    ]
    return "\n".join(lines)


def write_intents(measured: IntentBundleReport, out: Path) -> None:
    """Write `evaluation.json` and `evaluation.md` to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "evaluation.json").write_text(json.dumps(asdict(measured), indent=1) + "\n", encoding="utf-8")
    (out / "evaluation.md").write_text(intents_table(measured) + "\n", encoding="utf-8")
