"""Faithfulness of attribution methods: how much the answer depends on the words with the largest weights.

The measures are comprehensiveness and sufficiency (ERASER, DeYoung et al. 2020), and the areas under the deletion and
insertion curves (Petsiuk et al. 2018). They remove words, or put them back, by decreasing weight. Random orders are the
baseline. Every figure is in points of the answer's calibrated probability.
Knows explanations. Prints nothing. Drawing the picture imports matplotlib.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.evaluation.explanation_samples import InstancesBySet
from models.explain.attribution import METHODS
from models.explain.explainer import Explainer
from models.explain.methods import MethodName

BINS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Shares of the words, rounded up. Comprehensiveness and sufficiency are means over them, as in ERASER."""

GRID = tuple(step / 10 for step in range(11))
"""Shares of the words, rounded, at the points of the curves."""

MAX_FEATURES = 64
"""The number of features that a measured instance has at most."""

RANDOM_ORDERS = 5
RANDOM: Literal["random"] = "random"
CURVES, TABLE = "curves.png", "faithfulness.md"

Ranking = MethodName | Literal["random"]


class Attributable(Protocol):
    """An output for a text or a history, as a function of the features that are kept."""

    @property
    def features(self) -> Sequence[Any]: ...

    def score(self, masks: NDArray[np.bool_]) -> NDArray[np.float64]: ...


AnyInstance = TypeVar("AnyInstance", bound=Attributable)
AnyMethod = TypeVar("AnyMethod", bound=MethodName)


@dataclass(frozen=True, slots=True)
class FaithfulnessReport:
    """The figures of one method on one data set, as means over its texts.

    `comprehensiveness` is the loss of the answer's probability without the heaviest words (more is better).
    `sufficiency` is the loss with only these words (less is better). `deletion` (along GRID) is the probability while
    words are removed, heaviest first (a small area is better). `insertion` is the probability while they are put back
    (a large area is better).
    """

    dataset: str
    method: Ranking
    rows: int
    comprehensiveness: float
    sufficiency: float
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]
    milliseconds: float

    @property
    def deletion_area(self) -> float:
        return area_under_curve(self.deletion)

    @property
    def insertion_area(self) -> float:
        return area_under_curve(self.insertion)


@dataclass(frozen=True, slots=True)
class Curves:
    """The target's probability for one text, by the number of heaviest features, (features + 1,) each.

    `without` removes these features, and `only` keeps no others. Numbers that were not computed are NaN.
    """

    without: NDArray[np.float64]
    only: NDArray[np.float64]


def measure_faithfulness(
    explainer: Explainer, sets: Iterable[InstancesBySet], rows: int
) -> Iterator[FaithfulnessReport]:
    """Measure every method and random orders on `rows` instances of each data set.

    Skips a data set that has no instance with words to rank.
    """
    return measure_methods(explainer.attribute, METHODS, sets, rows)


def measure_methods(
    attribute: Callable[[AnyInstance, AnyMethod], NDArray[np.float64]],
    methods: Iterable[AnyMethod],
    sets: Iterable[tuple[str, Iterator[AnyInstance]]],
    rows: int,
) -> Iterator[FaithfulnessReport]:
    """Measure like `measure_faithfulness`, with any instances and methods."""
    for dataset, candidates in sets:
        instances = list(islice(filter(is_rankable, candidates), rows))
        if not instances:
            continue
        for method in methods:
            yield measure_method(attribute, dataset, method, instances)
        yield measure_random(dataset, instances)


def is_rankable(instance: Attributable) -> bool:
    """Return whether there are features to rank, and few enough that the curves take little time."""
    return 2 <= len(instance.features) <= MAX_FEATURES


def measure_method(
    attribute: Callable[[AnyInstance, AnyMethod], NDArray[np.float64]],
    dataset: str,
    method: AnyMethod,
    instances: Sequence[AnyInstance],
) -> FaithfulnessReport:
    started_s = time.process_time()  # CPU time, because a busy machine stretches the clock
    weights = [attribute(instance, method) for instance in instances]
    spent_s = time.process_time() - started_s
    curves = [
        perturbation_curves(instance, order_by_weight(by_feature))
        for instance, by_feature in zip(instances, weights, strict=True)
    ]
    return summarize_curves(dataset, method, curves, len(instances), 1000 * spent_s / len(instances))


def measure_random(dataset: str, instances: Sequence[Attributable]) -> FaithfulnessReport:
    rng = np.random.default_rng(0)
    curves = [
        perturbation_curves(instance, rng.permutation(len(instance.features)))
        for instance in instances
        for _ in range(RANDOM_ORDERS)
    ]
    return summarize_curves(dataset, RANDOM, curves, len(instances), 0.0)


def order_by_weight(weights: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the order of the features by decreasing weight, (features,). Ties keep the order of the features."""
    return np.argsort(-weights, kind="stable")


def perturbation_curves(instance: Attributable, order: NDArray[np.intp]) -> Curves:
    """Return the scores while features are removed and inserted in this order, at the numbers that are needed."""
    features = len(order)
    counts = sorted({*bin_counts(features), *grid_counts(features)})
    masks = np.zeros((len(counts), features), np.bool_)
    for row, count in enumerate(counts):
        masks[row, order[:count]] = True
    scores = instance.score(np.vstack([~masks, masks]))
    without, only = np.full(features + 1, np.nan), np.full(features + 1, np.nan)
    without[counts], only[counts] = scores[: len(counts)], scores[len(counts) :]
    return Curves(without, only)


def bin_counts(features: int) -> list[int]:
    return [int(np.ceil(share * features)) for share in BINS]


def grid_counts(features: int) -> list[int]:
    return [round(share * features) for share in GRID]


def summarize_curves(
    dataset: str, method: Ranking, curves: Sequence[Curves], rows: int, milliseconds: float
) -> FaithfulnessReport:
    """Return the means over the curves."""
    losses, gaps, deletions, insertions = [], [], [], []
    for curve in curves:
        features = len(curve.without) - 1
        bins, grid = bin_counts(features), grid_counts(features)
        losses.append((curve.without[0] - curve.without[bins]).mean())
        gaps.append((curve.without[0] - curve.only[bins]).mean())
        deletions.append(curve.without[grid])
        insertions.append(curve.only[grid])
    return FaithfulnessReport(
        dataset=dataset,
        method=method,
        rows=rows,
        comprehensiveness=float(np.mean(losses)),
        sufficiency=float(np.mean(gaps)),
        deletion=tuple(np.mean(deletions, axis=0).tolist()),
        insertion=tuple(np.mean(insertions, axis=0).tolist()),
        milliseconds=milliseconds,
    )


def area_under_curve(curve: Sequence[float]) -> float:
    """Return the area under a curve along GRID, by the trapezoidal rule."""
    return float(np.trapezoid(curve, GRID))


def average_faithfulness(measured: Sequence[FaithfulnessReport]) -> list[FaithfulnessReport]:
    """Return the mean of each method over data sets of equal weight, best first."""
    means = []
    for method in dict.fromkeys(row.method for row in measured):
        reports = [row for row in measured if row.method == method]
        means.append(
            FaithfulnessReport(
                dataset="mean",
                method=method,
                rows=sum(row.rows for row in reports),
                comprehensiveness=float(np.mean([row.comprehensiveness for row in reports])),
                sufficiency=float(np.mean([row.sufficiency for row in reports])),
                deletion=tuple(np.mean([row.deletion for row in reports], axis=0).tolist()),
                insertion=tuple(np.mean([row.insertion for row in reports], axis=0).tolist()),
                milliseconds=float(np.mean([row.milliseconds for row in reports])),
            )
        )
    return sorted(means, key=lambda row: -row.comprehensiveness)


def faithfulness_table(measured: Sequence[FaithfulnessReport]) -> str:
    """Return two Markdown tables: the means of each method over data sets, and its comprehensiveness on each set."""
    means, names = average_faithfulness(measured), list(dict.fromkeys(row.dataset for row in measured))
    by_chance = next(row.comprehensiveness for row in means if row.method == RANDOM)
    lines = [
        "| method | comprehensiveness | times random | sufficiency | deletion area | insertion area | CPU ms each |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in means:
        lines.append(
            f"| {row.method} | {row.comprehensiveness:.3f} | {row.comprehensiveness / by_chance:.1f} "
            f"| {row.sufficiency:.3f} | {row.deletion_area:.3f} | {row.insertion_area:.3f} | {row.milliseconds:.0f} |"
        )
    lines += ["", f"| comprehensiveness | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    by_method_and_set = {(row.method, row.dataset): row.comprehensiveness for row in measured}
    for row in means:
        lines.append(f"| {row.method} | {' | '.join(f'{by_method_and_set[row.method, name]:.3f}' for name in names)} |")
    return "\n".join(lines)


def write_faithfulness(measured: Sequence[FaithfulnessReport], features: str, out: Path) -> None:
    """Write `faithfulness.json`, `faithfulness.md` and `curves.png` to the folder `out`.

    `features` is the noun for the features.
    """
    out.mkdir(parents=True, exist_ok=True)
    areas = [{"deletion_area": row.deletion_area, "insertion_area": row.insertion_area} for row in measured]
    content = json.dumps([asdict(row) | extra for row, extra in zip(measured, areas, strict=True)], indent=1)
    (out / "faithfulness.json").write_text(content + "\n", encoding="utf-8")
    (out / TABLE).write_text(faithfulness_table(measured) + "\n", encoding="utf-8")
    draw_curves(measured, features, out / CURVES)


def draw_curves(measured: Sequence[FaithfulnessReport], features: str, path: Path) -> None:
    """Draw the mean score over data sets while the heaviest features are removed, and while they are put back.

    The curve of random orders is dashed.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row in average_faithfulness(measured):
        style = "k--" if row.method == RANDOM else "-"
        left.plot(GRID, row.deletion, style, label=row.method)
        right.plot(GRID, row.insertion, style)
    left.set_xlabel(f"share of the {features} removed, heaviest first")
    right.set_xlabel(f"share of the {features} put back, heaviest first")
    left.set_ylabel("score of the answer")
    left.set_ylim(0, 1)
    left.legend(fontsize=8)
    figure.savefig(path, dpi=110)
