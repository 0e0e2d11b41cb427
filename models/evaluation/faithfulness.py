"""Faithfulness: whether the words that a method weighs most are those that the answer rests on, beside random orders.

Comprehensiveness and sufficiency as in ERASER (DeYoung et al. 2020), and the areas under the curves of deletion and
insertion (Petsiuk et al. 2018): words are taken away, or put back, from the heaviest on. Every figure is in points of
the answer's calibrated probability. Knows explanations; prints nothing. The picture needs matplotlib,
which is imported when it is drawn.
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
from models.explain.explainer import METHODS, Explainer, MethodName

BINS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""Shares of the words, each rounded up, over which comprehensiveness and sufficiency are means, as ERASER has them."""

GRID = tuple(step / 10 for step in range(11))
"""Shares of the words between which the curves are drawn, each rounded."""

MAX_FEATURES = 64
"""Parts of what is measured."""

RANDOM_ORDERS = 5
RANDOM: Literal["random"] = "random"
CURVES, TABLE = "curves.png", "faithfulness.md"

Ranking = MethodName | Literal["random"]


class Attributable(Protocol):
    """Of a text, or of a history: an answer as a function of the parts that are kept."""

    @property
    def features(self) -> Sequence[Any]: ...

    def score(self, kept: NDArray[np.bool_]) -> NDArray[np.float64]: ...


AnyInstance = TypeVar("AnyInstance", bound=Attributable)
AnyMethod = TypeVar("AnyMethod", bound=MethodName)


@dataclass(frozen=True, slots=True)
class FaithfulnessReport:
    """One method on one data set, in the mean over its texts.

    `comprehensiveness`: what the answer's probability loses without the heaviest words (more is better);
    `sufficiency`: what it loses with only them (less is better). `deletion` (along GRID) is the probability as words
    are taken away from the heaviest on (a small area is better), `insertion` as they are put back (a large one is).
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
        return area(self.deletion)

    @property
    def insertion_area(self) -> float:
        return area(self.insertion)


@dataclass(frozen=True, slots=True)
class Curves:
    """Of one text: the target's probability without, and with only, so many of the heaviest parts, (parts + 1,) each.

    Where a number of parts was not asked for it is NaN.
    """

    without: NDArray[np.float64]
    only: NDArray[np.float64]


def measure_faithfulness(
    explainer: Explainer, sets: Iterable[InstancesBySet], rows: int
) -> Iterator[FaithfulnessReport]:
    """Every method and random orders on `rows` questions of each data set.

    A data set without any whose words could be ranked is left out.
    """
    return measure_methods(explainer.attribute, METHODS, sets, rows)


def measure_methods(
    weigh: Callable[[AnyInstance, AnyMethod], NDArray[np.float64]],
    methods: Iterable[AnyMethod],
    sets: Iterable[tuple[str, Iterator[AnyInstance]]],
    rows: int,
) -> Iterator[FaithfulnessReport]:
    """As `measure`, of other questions and by other methods."""
    for name, asked in sets:
        questions = list(islice(filter(rankable, asked), rows))
        if not questions:
            continue
        for method in methods:
            yield measure_method(weigh, name, method, questions)
        yield measure_random(name, questions)


def rankable(question: Attributable) -> bool:
    """Whether there is anything to rank, and not so much that its curves would take most of the time."""
    return 2 <= len(question.features) <= MAX_FEATURES


def measure_method(
    weigh: Callable[[AnyInstance, AnyMethod], NDArray[np.float64]],
    dataset: str,
    method: AnyMethod,
    questions: Sequence[AnyInstance],
) -> FaithfulnessReport:
    started_s = time.process_time()  # a busy machine stretches the time on the clock
    weights = [weigh(question, method) for question in questions]
    spent_s = time.process_time() - started_s
    found = [
        perturbation_curves(question, heaviest_first(own)) for question, own in zip(questions, weights, strict=True)
    ]
    return summary(dataset, method, found, len(questions), 1000 * spent_s / len(questions))


def measure_random(dataset: str, questions: Sequence[Attributable]) -> FaithfulnessReport:
    chance = np.random.default_rng(0)
    found = [
        perturbation_curves(question, chance.permutation(len(question.features)))
        for question in questions
        for _ in range(RANDOM_ORDERS)
    ]
    return summary(dataset, RANDOM, found, len(questions), 0.0)


def heaviest_first(weights: NDArray[np.float64]) -> NDArray[np.intp]:
    """(parts,): their order by weight; of equal weights the earlier part first."""
    return np.argsort(-weights, kind="stable")


def perturbation_curves(question: Attributable, order: NDArray[np.intp]) -> Curves:
    """What the answer keeps as parts go, and as they come, in this order, for the numbers of parts that are needed."""
    parts = len(order)
    counts = sorted({*share_in_bins(parts), *interpolate_to_grid(parts)})
    taken = np.zeros((len(counts), parts), np.bool_)
    for row, count in enumerate(counts):
        taken[row, order[:count]] = True
    values = question.score(np.vstack([~taken, taken]))
    without, only = np.full(parts + 1, np.nan), np.full(parts + 1, np.nan)
    without[counts], only[counts] = values[: len(counts)], values[len(counts) :]
    return Curves(without, only)


def share_in_bins(parts: int) -> list[int]:
    return [int(np.ceil(share * parts)) for share in BINS]


def interpolate_to_grid(parts: int) -> list[int]:
    return [round(share * parts) for share in GRID]


def summary(
    dataset: str, method: Ranking, found: Sequence[Curves], rows: int, milliseconds: float
) -> FaithfulnessReport:
    """The means over texts of what each one's curves say."""
    sizes = [len(own.without) - 1 for own in found]
    losses = [
        (own.without[0] - own.without[share_in_bins(size)]).mean() for own, size in zip(found, sizes, strict=True)
    ]
    gaps = [(own.without[0] - own.only[share_in_bins(size)]).mean() for own, size in zip(found, sizes, strict=True)]
    deletion = np.mean([own.without[interpolate_to_grid(size)] for own, size in zip(found, sizes, strict=True)], axis=0)
    insertion = np.mean([own.only[interpolate_to_grid(size)] for own, size in zip(found, sizes, strict=True)], axis=0)
    return FaithfulnessReport(
        dataset=dataset,
        method=method,
        rows=rows,
        comprehensiveness=float(np.mean(losses)),
        sufficiency=float(np.mean(gaps)),
        deletion=tuple(deletion.tolist()),
        insertion=tuple(insertion.tolist()),
        milliseconds=milliseconds,
    )


def area(curve: Sequence[float]) -> float:
    """Under a curve along GRID, by trapezoids."""
    return float(np.trapezoid(curve, GRID))


def over_sets(measured: Sequence[FaithfulnessReport]) -> list[FaithfulnessReport]:
    """Each method in the mean over data sets, every set alike, best first."""
    means = []
    for method in dict.fromkeys(row.method for row in measured):
        own = [row for row in measured if row.method == method]
        means.append(
            FaithfulnessReport(
                dataset="mean",
                method=method,
                rows=sum(row.rows for row in own),
                comprehensiveness=float(np.mean([row.comprehensiveness for row in own])),
                sufficiency=float(np.mean([row.sufficiency for row in own])),
                deletion=tuple(np.mean([row.deletion for row in own], axis=0).tolist()),
                insertion=tuple(np.mean([row.insertion for row in own], axis=0).tolist()),
                milliseconds=float(np.mean([row.milliseconds for row in own])),
            )
        )
    return sorted(means, key=lambda row: -row.comprehensiveness)


def faithfulness_table(measured: Sequence[FaithfulnessReport]) -> str:
    """Two Markdown tables: each method in the mean over data sets, and its comprehensiveness on each."""
    means, names = over_sets(measured), list(dict.fromkeys(row.dataset for row in measured))
    chance = next(row.comprehensiveness for row in means if row.method == RANDOM)
    lines = [
        "| method | comprehensiveness | times random | sufficiency | deletion area | insertion area | CPU ms each |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in means:
        lines.append(
            f"| {row.method} | {row.comprehensiveness:.3f} | {row.comprehensiveness / chance:.1f} "
            f"| {row.sufficiency:.3f} | {row.deletion_area:.3f} | {row.insertion_area:.3f} | {row.milliseconds:.0f} |"
        )
    lines += ["", f"| comprehensiveness | {' | '.join(names)} |", f"|---|{'--:|' * len(names)}"]
    by_both = {(row.method, row.dataset): row.comprehensiveness for row in measured}
    for row in means:
        lines.append(f"| {row.method} | {' | '.join(f'{by_both[row.method, name]:.3f}' for name in names)} |")
    return "\n".join(lines)


def write_faithfulness(measured: Sequence[FaithfulnessReport], parts: str, out: Path) -> None:
    """`faithfulness.json`, `faithfulness.md` and `curves.png` in the folder `out`; `parts` is what was weighed."""
    out.mkdir(parents=True, exist_ok=True)
    areas = [{"deletion_area": row.deletion_area, "insertion_area": row.insertion_area} for row in measured]
    content = json.dumps([asdict(row) | own for row, own in zip(measured, areas, strict=True)], indent=1)
    (out / "faithfulness.json").write_text(content + "\n", encoding="utf-8")
    (out / TABLE).write_text(faithfulness_table(measured) + "\n", encoding="utf-8")
    draw_curves(measured, parts, out / CURVES)


def draw_curves(measured: Sequence[FaithfulnessReport], parts: str, path: Path) -> None:
    """The answer's score as the heaviest parts go, and as they come, the mean over data sets; random orders dashed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row in over_sets(measured):
        style = "k--" if row.method == RANDOM else "-"
        left.plot(GRID, row.deletion, style, label=row.method)
        right.plot(GRID, row.insertion, style)
    left.set_xlabel(f"share of the {parts} taken away, heaviest first")
    right.set_xlabel(f"share of the {parts} put back, heaviest first")
    left.set_ylabel("score of the answer")
    left.set_ylim(0, 1)
    left.legend(fontsize=8)
    figure.savefig(path, dpi=110)
