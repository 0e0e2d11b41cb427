"""Fitting of intent heads on the vectors of a frozen encoder, in seconds on a CPU.

Knows vectors and labels, no network. Needs scikit-learn, no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import t as student
from sklearn.cluster import KMeans
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from models.prediction.calibration import log_softmax, scale_logits
from models.prediction.calibration_fit import expected_calibration_error, top_confidences
from models.prediction.intent_head import IntentHead, out_of_scope_distances
from models.prediction.normalize import normalize_centered
from models.prediction.tensor_file import ArtifactError

INVERSE_REGULARIZATION = 30.0
"""The inverse of the penalty on the weights, for vectors of length 1."""

WHITENING_EXPONENT = 0.25
"""The degree of whitening: 0 is none, 1 is the Mahalanobis distance."""

MAX_GROUPS_PER_INTENT = 8
MAX_GROUPS_PER_HEAD = 4096
"""A limit because every request computes its distances to all groups."""

FOLDS = 5
QUANTILES = 200
MIN_SPREAD = 0.1
"""The lower bound on the standard deviation of the logarithms of a small sample of distances."""

MIN_SHARE = 0.1
"""The share of the median below which distances of a small sample are raised: a duplicate text has distance 0."""

REJECTION_RATE = 0.05
"""The default share of the texts in scope that the threshold rejects."""

POWER_SPREAD = 0.1
"""The standard deviation of the prior on a scaling's power, about 0."""

MAX_REPORTED = 10
ISSUE_CONFIDENCE = 0.9
"""The confidence in another intent above which an example looks mislabelled."""

Vectors = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Confusion:
    """A confusion: `count` examples of `label` were predicted as `taken_for`."""

    label: str
    taken_for: str
    count: int


@dataclass(frozen=True, slots=True)
class LabelIssue:
    """An example that looks mislabelled: the example `index`, from 0, has `label` but looks like `looks_like`."""

    index: int
    label: str
    looks_like: str
    confidence: float


@dataclass(frozen=True, slots=True)
class FitReport:
    """The measures of a head on texts that it was not fitted on."""

    accuracy: float
    ece: float
    confusions: tuple[Confusion, ...]
    label_issues: tuple[LabelIssue, ...]


@dataclass(frozen=True, slots=True)
class Examples:
    """Labelled vectors: `vectors` (rows, width) and `labels` (rows,)."""

    vectors: Vectors
    labels: tuple[str, ...]


def fit_intent_head(
    name: str,
    languages: Sequence[str],
    encoder: str,
    examples: Examples,
    held_out: Examples | None = None,
    rejection_rate: float = REJECTION_RATE,
) -> tuple[IntentHead, FitReport]:
    """Return a head fitted on the examples, and its measures.

    Confidences and the threshold come from `held_out`, or without it from the examples by cross-validation.

    Raises:
        ArtifactError: The examples have too few intents, or an intent too few examples.
    """
    labels = check_labels(examples.labels)
    targets = np.asarray([labels.index(label) for label in examples.labels])
    uncalibrated = fit_uncalibrated(name, labels, languages, encoder, examples.vectors, targets)
    if held_out is None:
        logits, distances = cross_fitted_logits(uncalibrated, examples.vectors, targets)
        truth = targets
    else:
        truth = np.asarray([labels.index(label) for label in held_out.labels])
        logits, distances = logits_and_distances(uncalibrated, held_out.vectors)
    doubt = 1 / (len(truth) + 2) if held_out is None or len(truth) < QUANTILES else 0.0
    temperature, power = fit_temperature(logits, truth, doubt)
    confidences = np.exp(log_softmax(scale_logits(logits, temperature, power)))
    confidence, correct = top_confidences(confidences, truth)
    report = FitReport(
        accuracy=float(correct.mean()),
        ece=expected_calibration_error(confidence, correct),
        confusions=count_confusions(confidences, truth, labels),
        label_issues=find_label_issues(confidences, truth, labels),
    )
    small = len(distances) < QUANTILES
    belonging = small_sample_quantiles(distances) if small else np.quantile(distances, np.linspace(0, 1, QUANTILES))
    figures = {"accuracy": report.accuracy, "ece": report.ece}
    head = replace(
        uncalibrated,
        temperature=temperature,
        power=power,
        belonging=belonging.astype(np.float32),
        threshold=1 - rejection_rate,
        figures=figures,
    )
    return head, report


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the intents in order; raises ArtifactError if there are too few intents or examples."""
    counts = Counter(labels)
    if len(counts) < 2:
        raise ArtifactError(f"the examples have {len(counts)} intent; at least 2 are needed")
    if rare := [label for label, count in counts.items() if count < 2]:
        raise ArtifactError(f"the intent {rare[0]!r} has one example; each needs at least 2")
    return tuple(sorted(counts))


def fit_uncalibrated(
    name: str,
    labels: tuple[str, ...],
    languages: Sequence[str],
    encoder: str,
    vectors: Vectors,
    targets: NDArray[np.int64],
) -> IntentHead:
    """Return a head without calibration and threshold, fitted on `vectors` (rows, width) with `targets` (rows,)."""
    center = vectors.mean(axis=0).astype(np.float32)
    directions = normalize_centered(vectors, center)
    model = LogisticRegression(C=INVERSE_REGULARIZATION, max_iter=300).fit(directions, targets)
    weight, bias = model.coef_, model.intercept_
    if len(labels) == 2:  # scikit-learn gives a single row, for the second label
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    rows_by_label = [directions[targets == label] for label in range(len(labels))]
    means = np.stack([rows.mean(axis=0) for rows in rows_by_label])
    covariance, _ = ledoit_wolf(directions - means[targets], assume_centered=True)
    values, axes = np.linalg.eigh(covariance)
    whiten = (axes / np.maximum(values, 1e-9) ** (WHITENING_EXPONENT / 2)).astype(np.float32)
    max_groups = min(MAX_GROUPS_PER_INTENT, max(1, MAX_GROUPS_PER_HEAD // len(labels)))
    groups = np.concatenate([cluster_centroids(rows, max_groups) for rows in rows_by_label])
    return IntentHead(
        name=name,
        labels=labels,
        languages=tuple(languages),
        encoder=encoder,
        center=center,
        weight=weight.astype(np.float32),
        bias=bias.astype(np.float32),
        temperature=1.0,
        power=0.0,
        whiten=whiten,
        means=(means @ whiten).astype(np.float32),
        groups=(groups @ whiten).astype(np.float32),
        belonging=np.zeros(1, np.float32),
        threshold=1.0,
        figures={},
    )


def cluster_centroids(rows: Vectors, max_groups: int) -> Vectors:
    """Return the means of groups of an intent's examples, (groups, width): the examples themselves if few enough."""
    if len(rows) <= max_groups:
        return rows
    return np.asarray(KMeans(max_groups, n_init=1, max_iter=30, random_state=0).fit(rows).cluster_centers_)


def cross_fitted_logits(
    head: IntentHead, vectors: Vectors, targets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return logits (rows, labels) and distances (rows,), each row from a head that was fitted without it."""
    logits, distances = np.zeros((len(targets), len(head.labels))), np.zeros(len(targets))
    folds = StratifiedKFold(min(FOLDS, int(np.bincount(targets).min())), shuffle=True, random_state=0)
    for training, test in folds.split(vectors, targets):
        fold_head = fit_uncalibrated(
            head.name, head.labels, head.languages, head.encoder, vectors[training], targets[training]
        )
        logits[test], distances[test] = logits_and_distances(fold_head, vectors[test])
    return logits, distances


def logits_and_distances(head: IntentHead, vectors: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the logits (rows, labels) and the out-of-scope distances (rows,) of `vectors`."""
    directions = normalize_centered(vectors, head.center)
    return (directions @ head.weight.T + head.bias).astype(np.float64), out_of_scope_distances(head, directions)


def small_sample_quantiles(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return quantiles of the log-normal distribution of a few distances, as wide as the sample leaves it open.

    The 95th percentile of a dozen values is not among them. So the quantiles are those of Student's t, which is the
    distribution of the next value.
    """
    logs = np.log(np.maximum(distances, max(MIN_SHARE * float(np.median(distances)), 1e-9)))
    spread = max(float(logs.std(ddof=1)), MIN_SPREAD) * float(np.sqrt(1 + 1 / len(logs)))
    shares = np.linspace(0, 1, QUANTILES, endpoint=False)
    shares[0] = shares[1] / 2
    return np.asarray(np.exp(logs.mean() + spread * student.ppf(shares, len(logs) - 1)))


def fit_temperature(logits: NDArray[np.float64], truth: NDArray[np.int64], doubt: float = 0.0) -> tuple[float, float]:
    """Return the temperature and the power with the lowest log loss.

    `doubt` is the share of the target that the wrong intents get together. Without it, a few examples that are all
    classified correctly would make any text certain (Platt 1999).
    """

    def loss(parameters: NDArray[np.float64]) -> float:
        logs = log_softmax(scale_logits(logits, float(np.exp(parameters[0])), float(parameters[1])))
        correct = logs[np.arange(len(truth)), truth]
        wrong = (logs.sum(axis=1) - correct) / (logs.shape[1] - 1)
        penalty = (parameters[1] / POWER_SPREAD) ** 2 / (2 * len(truth))
        return float(penalty - ((1 - doubt) * correct + doubt * wrong).mean())

    best = minimize(loss, np.zeros(2), bounds=((-4, 4), (-1, 1)), method="L-BFGS-B").x
    return float(np.exp(best[0])), float(best[1])


def count_confusions(
    confidences: NDArray[np.float64], truth: NDArray[np.int64], labels: Sequence[str]
) -> tuple[Confusion, ...]:
    """Return the most frequent confusions in descending order."""
    predicted = confidences.argmax(axis=1)
    pairs = Counter((labels[true], labels[top]) for true, top in zip(truth, predicted, strict=True) if true != top)
    return tuple(Confusion(label, taken_for, count) for (label, taken_for), count in pairs.most_common(MAX_REPORTED))


def find_label_issues(
    confidences: NDArray[np.float64], truth: NDArray[np.int64], labels: Sequence[str]
) -> tuple[LabelIssue, ...]:
    """Return the surest label issues in descending order (plain confident learning, Northcutt et al. 2021)."""
    predicted, confidence = confidences.argmax(axis=1), confidences.max(axis=1)
    issues = [
        LabelIssue(index, labels[truth[index]], labels[predicted[index]], float(confidence[index]))
        for index in np.argsort(-confidence)
        if predicted[index] != truth[index] and confidence[index] >= ISSUE_CONFIDENCE
    ]
    return tuple(issues[:MAX_REPORTED])
