"""Making a head: a set of intents learned on the vectors of an encoder that stays as it is, in seconds on a CPU.

Knows vectors and labels, no network; needs scikit-learn, no torch.
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
from models.prediction.calibration_fit import chosen, expected_calibration_error
from models.prediction.intent_head import IntentHead, out_of_scope_distances
from models.prediction.normalize import normalize_centered
from models.prediction.tensor_file import ArtifactError

INVERSE_REGULARIZATION = 30.0
"""Inverse of the penalty on the weights, for vectors of length 1."""

WHITENING_EXPONENT = 0.25
"""How far the spread of examples is evened out: not at all by 0, by 1 wholly, which is Mahalanobis's distance."""

GROUPS = 8
"""Of an intent's examples, at most."""

MAX_GROUPS = 4096
"""Of a head, whose every request is set beside all of them."""

FOLDS = 5
QUANTILES = 200
MIN_SPREAD = 0.1
"""Of the logarithm of a few distances."""

MIN_SHARE = 0.1
"""Of the median, that a few distances count for at least: one to a text that is there twice is 0."""

REJECTION_RATE = 0.05
"""Share of the texts that belong which the threshold turns away, unless asked otherwise."""

POWER_SPREAD = 0.1
"""Standard deviation of a scaling's power about 0, as it is thought to be before any example is seen."""

SHOWN = 10
ISSUE_CONFIDENCE = 0.9
"""Confidence in another intent from which an example looks mislabelled."""

Vectors = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Confusion:
    """`count` examples of `label` were taken for `taken_for`."""

    label: str
    taken_for: str
    count: int


@dataclass(frozen=True, slots=True)
class LabelIssue:
    """The example `number`, from 0, labelled `label`, looks like `looks_like`."""

    index: int
    label: str
    looks_like: str
    confidence: float


@dataclass(frozen=True, slots=True)
class FitReport:
    """How a head answers texts that it was not made of."""

    accuracy: float
    ece: float
    confusions: tuple[Confusion, ...]
    label_issues: tuple[LabelIssue, ...]


@dataclass(frozen=True, slots=True)
class Examples:
    """`vectors` (rows, width) and `labels` (rows,)."""

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
    """A head of the examples; raises HeadError when no head can be made of them.

    Confidences and the threshold come from `held_out`, where there is none from the examples by cross-validation.
    """
    labels = check_labels(examples.labels)
    numbers = np.asarray([labels.index(label) for label in examples.labels])
    plain = fit_uncalibrated(name, labels, languages, encoder, examples.vectors, numbers)
    if held_out is None:
        logits, away = cross_fitted_logits(plain, examples.vectors, numbers)
        truth = numbers
    else:
        truth = np.asarray([labels.index(label) for label in held_out.labels])
        logits, away = logits_and_distances(plain, held_out.vectors)
    doubt = 1 / (len(truth) + 2) if held_out is None or len(truth) < QUANTILES else 0.0
    temperature, power = fit_temperature(logits, truth, doubt)
    confidences = np.exp(log_softmax(scale_logits(logits, temperature, power)))
    sure, right = chosen(confidences, truth)
    report = FitReport(
        accuracy=float(right.mean()),
        ece=expected_calibration_error(sure, right),
        confusions=confusions(confidences, truth, labels),
        label_issues=find_label_issues(confidences, truth, labels),
    )
    belonging = (
        small_sample_quantiles(away) if len(away) < QUANTILES else np.quantile(away, np.linspace(0, 1, QUANTILES))
    )
    figures = {"accuracy": report.accuracy, "ece": report.ece}
    head = replace(
        plain,
        temperature=temperature,
        power=power,
        belonging=belonging.astype(np.float32),
        threshold=1 - rejection_rate,
        figures=figures,
    )
    return head, report


def check_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """The intents in order; raises HeadError."""
    counts = Counter(labels)
    if len(counts) < 2:
        raise ArtifactError(f"the examples have {len(counts)} intent; at least 2 are needed")
    if few := [label for label, count in counts.items() if count < 2]:
        raise ArtifactError(f"the intent {few[0]!r} has one example; each needs at least 2")
    return tuple(sorted(counts))


def fit_uncalibrated(
    name: str,
    labels: tuple[str, ...],
    languages: Sequence[str],
    encoder: str,
    vectors: Vectors,
    numbers: NDArray[np.int64],
) -> IntentHead:
    """Not yet calibrated."""
    center = vectors.mean(axis=0).astype(np.float32)
    direction = normalize_centered(vectors, center)
    model = LogisticRegression(C=INVERSE_REGULARIZATION, max_iter=300).fit(direction, numbers)
    weight, bias = model.coef_, model.intercept_
    if len(labels) == 2:  # one row that speaks for the second
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    own = [direction[numbers == label] for label in range(len(labels))]
    means = np.stack([rows.mean(axis=0) for rows in own])
    covariance, _ = ledoit_wolf(direction - means[numbers], assume_centered=True)
    values, axes = np.linalg.eigh(covariance)
    whiten = (axes / np.maximum(values, 1e-9) ** (WHITENING_EXPONENT / 2)).astype(np.float32)
    most = min(GROUPS, max(1, MAX_GROUPS // len(labels)))
    groups = np.concatenate([cluster_centroids(rows, most) for rows in own])
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


def cluster_centroids(rows: Vectors, most: int) -> Vectors:
    """The means of groups of an intent's examples, (groups, width); each is its own group where they are few."""
    if len(rows) <= most:
        return rows
    return np.asarray(KMeans(most, n_init=1, max_iter=30, random_state=0).fit(rows).cluster_centers_)


def cross_fitted_logits(
    head: IntentHead, vectors: Vectors, numbers: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits (rows, labels) and distances (rows,) of each row from a head that was made without it."""
    logits, away = np.zeros((len(numbers), len(head.labels))), np.zeros(len(numbers))
    folds = StratifiedKFold(min(FOLDS, int(np.bincount(numbers).min())), shuffle=True, random_state=0)
    for others, own in folds.split(vectors, numbers):
        part = fit_uncalibrated(head.name, head.labels, head.languages, head.encoder, vectors[others], numbers[others])
        logits[own], away[own] = logits_and_distances(part, vectors[own])
    return logits, away


def logits_and_distances(head: IntentHead, vectors: Vectors) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits (rows, labels) and distances (rows,)."""
    direction = normalize_centered(vectors, head.center)
    return (direction @ head.weight.T + head.bias).astype(np.float64), out_of_scope_distances(head, direction)


def small_sample_quantiles(away: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the distribution that a few distances come from, taken for log-normal, as wide as so few leave it open.

    The 95th percentile of a dozen values is not among them: it is that of Student's t, by which the next value differs.
    """
    logs = np.log(np.maximum(away, max(MIN_SHARE * float(np.median(away)), 1e-9)))
    spread = max(float(logs.std(ddof=1)), MIN_SPREAD) * float(np.sqrt(1 + 1 / len(logs)))
    shares = np.linspace(0, 1, QUANTILES, endpoint=False)
    shares[0] = shares[1] / 2
    return np.asarray(np.exp(logs.mean() + spread * student.ppf(shares, len(logs) - 1)))


def fit_temperature(logits: NDArray[np.float64], truth: NDArray[np.int64], doubt: float = 0.0) -> tuple[float, float]:
    """Temperature and power of the least log loss.

    `doubt` is what the target leaves to the other intents together: without it a few examples, all of them right, would
    make any text certain (Platt 1999).
    """

    def loss(parameters: NDArray[np.float64]) -> float:
        logs = log_softmax(scale_logits(logits, float(np.exp(parameters[0])), float(parameters[1])))
        right = logs[np.arange(len(truth)), truth]
        others = (logs.sum(axis=1) - right) / (logs.shape[1] - 1)
        strange = (parameters[1] / POWER_SPREAD) ** 2 / (2 * len(truth))
        return float(strange - ((1 - doubt) * right + doubt * others).mean())

    best = minimize(loss, np.zeros(2), bounds=((-4, 4), (-1, 1)), method="L-BFGS-B").x
    return float(np.exp(best[0])), float(best[1])


def confusions(
    confidences: NDArray[np.float64], truth: NDArray[np.int64], labels: Sequence[str]
) -> tuple[Confusion, ...]:
    """The most frequent first."""
    best = confidences.argmax(axis=1)
    pairs = Counter((labels[own], labels[other]) for own, other in zip(truth, best, strict=True) if own != other)
    return tuple(Confusion(own, other, count) for (own, other), count in pairs.most_common(SHOWN))


def find_label_issues(
    confidences: NDArray[np.float64], truth: NDArray[np.int64], labels: Sequence[str]
) -> tuple[LabelIssue, ...]:
    """The surest first (confident learning, Northcutt et al. 2021, in its plainest form)."""
    best, height = confidences.argmax(axis=1), confidences.max(axis=1)
    found = [
        LabelIssue(number, labels[truth[number]], labels[best[number]], float(height[number]))
        for number in np.argsort(-height)
        if best[number] != truth[number] and height[number] >= ISSUE_CONFIDENCE
    ]
    return tuple(found[:SHOWN])
