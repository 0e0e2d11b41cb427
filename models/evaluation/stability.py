"""Stability of attribution methods: the agreement of weights under differences that should not matter.

There are two kinds of difference. One is the rounding of the served graph, compared with its weights in fp32. The other
is a change of a text that keeps every word: the case of a word, the final period, or white space. Agreement is
Spearman's rank correlation of the words by weight, and whether the heaviest word is the same.
Knows explanations. Prints nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from models.bundle import GRAPH, Bundle
from models.evaluation.explanation_samples import Change, InstancesBySet, unchanged
from models.evaluation.faithfulness import is_rankable
from models.explain.attribution import METHODS
from models.explain.explainer import Explainer, attribute_to_words
from models.explain.instance import Instance
from models.explain.methods import MethodName
from models.graph.builder import save_graph as write_graph
from models.graph.convert import convert_graph
from models.runtime.onnx import OnnxRuntime
from models.text.language import has_text
from models.text.tokenizer import Tokenizer
from models.text.words import HAN, word_spans

FP32 = "fp32"
STABILITY = "stability.md"


@dataclass(frozen=True, slots=True)
class StabilityReport:
    """The agreement of one method's weights on one data set under one difference, as means over texts.

    `kept` is the share of texts whose answer stays the same. The rest is measured on these texts: `correlation` of the
    words' ranks, and `heaviest`, the share with the same heaviest word.
    """

    dataset: str
    difference: str
    method: MethodName
    rows: int
    kept: float
    correlation: float
    heaviest: float


def measure_stability(
    explainer: Explainer, exact: Explainer, make_instances: Callable[[Change], Iterable[InstancesBySet]], rows: int
) -> Iterator[StabilityReport]:
    """Measure every method on `rows` instances of each data set.

    `exact` runs in fp32, and `make_instances` returns the instances of the data sets under a change. A text that a
    change leaves as it is, such as Chinese under a change of case, does not count for it.
    """
    for sets in zip(*(make_instances(change) for change in (unchanged, *CHANGES.values())), strict=True):
        versions = zip(*(instances for _, instances in sets), strict=True)
        sampled = list(islice((row for row in versions if is_rankable(row[0])), rows))
        before = [row[0] for row in sampled]
        differences = [Difference(FP32, exact, dict(enumerate(map(exact.rebind, before))))]
        for version, name in enumerate(CHANGES, 1):
            after = {
                index: row[version] for index, row in enumerate(sampled) if text_of(row[version]) != text_of(row[0])
            }
            differences.append(Difference(name, explainer, after))
        for method in METHODS:
            weights = [attribute_instance(explainer, instance, method) for instance in before]
            for difference in differences:
                pairs = [
                    (weights[row], attribute_instance(difference.explainer, instance, method))
                    for row, instance in difference.after.items()
                    if predicted_label(instance) == before[row].target
                ]
                yield rank_agreement(sets[0][0], difference.name, method, len(difference.after), pairs)


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference by name, the changed instances by row, and the explainer that answers them."""

    name: str
    explainer: Explainer
    after: dict[int, Instance]


def predicted_label(instance: Instance) -> str:
    return max(instance.scores, key=instance.scores.__getitem__)


def open_fp32_explainer(bundle: Bundle, folder: Path) -> Explainer:
    """Return an explainer of the graph with its weights in fp32, which this writes to `folder`.

    Raises ValueError as `convert_graph` does.
    """
    write_graph(convert_graph(bundle.graph, "fp32"), folder / GRAPH)
    exact = replace(bundle, path=folder)
    return Explainer(exact, Tokenizer.from_bundle(bundle), OnnxRuntime(exact.graph))


def attribute_instance(explainer: Explainer, instance: Instance, method: MethodName) -> NDArray[np.float64]:
    return attribute_to_words(instance, explainer.attribute(instance, method))


def text_of(instance: Instance) -> str:
    """Return the text, or the newest turn of a dialogue."""
    return instance.encoding.segments[-1].text


def rank_agreement(
    dataset: str,
    difference: str,
    method: MethodName,
    rows: int,
    pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> StabilityReport:
    """Compare weights before and after, (words,) each. A word that only one side has is the last and is left out."""
    shared = [(before[: len(after)], after[: len(before)]) for before, after in pairs]
    correlations = [rank_correlation(*pair) for pair in shared]
    return StabilityReport(
        dataset=dataset,
        difference=difference,
        method=method,
        rows=rows,
        kept=len(pairs) / rows if rows else np.nan,
        correlation=finite_mean(correlations),
        heaviest=finite_mean([float(before.argmax() == after.argmax()) for before, after in shared]),
    )


def rank_correlation(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation, or NaN if all weights of either side are equal."""
    ranks = [rankdata(weights) for weights in (before, after)]
    if any(np.ptp(side) == 0 for side in ranks):
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def finite_mean(values: Sequence[float]) -> float:
    """Return the mean of the finite values, or NaN if there are none."""
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def change_case(text: str, entity: str | None) -> str:
    """Swap the case of the first letter of the first word that has case and is not the entity."""
    for start, end in word_spans(text):
        first = text[start]
        swapped = first.lower() if first.isupper() else first.upper()
        if swapped != first and len(swapped) == 1 and end - start > 1 and not is_in_entity(text[start:end], entity):
            return text[:start] + swapped + text[start + 1 :]
    return text


def is_in_entity(word: str, entity: str | None) -> bool:
    return entity is not None and word.casefold() in entity.casefold()


def toggle_final_period(text: str, entity: str | None) -> str:
    """Remove the final period, or add one if the text ends without a mark."""
    bare = text.rstrip()
    if bare.endswith((".", "。")) and has_text(bare[:-1]) and bare[-2] != bare[-1]:
        return bare[:-1]
    if bare[-1:].isalnum():
        return bare + ("。" if HAN.search(bare) else ".")
    return text


def widen_white_space(text: str, entity: str | None) -> str:
    """Add white space before and after, and double each space between, except in the name of the entity."""
    parts = re.split(f"({re.escape(entity)})", text, flags=re.IGNORECASE) if entity else [text]
    wide = [part if index % 2 else part.replace(" ", "  ") for index, part in enumerate(parts)]
    return f"  {''.join(wide)} \n"


CHANGES: dict[str, Change] = {"case": change_case, "period": toggle_final_period, "white space": widen_white_space}


def average_stability(reports: Sequence[StabilityReport]) -> list[StabilityReport]:
    """Return the mean of each difference and method over data sets of equal weight."""
    means = []
    for difference, method in dict.fromkeys((row.difference, row.method) for row in reports):
        rows = [row for row in reports if (row.difference, row.method) == (difference, method)]
        means.append(
            StabilityReport(
                dataset="mean",
                difference=difference,
                method=method,
                rows=sum(row.rows for row in rows),
                kept=finite_mean([row.kept for row in rows]),
                correlation=finite_mean([row.correlation for row in rows]),
                heaviest=finite_mean([row.heaviest for row in rows]),
            )
        )
    return means


def stability_table(reports: Sequence[StabilityReport]) -> str:
    """Return a Markdown table: the rank correlation and the share with the same heaviest word, by method."""
    means = average_stability(reports)
    differences = list(dict.fromkeys(row.difference for row in means))
    by_method_and_difference = {(row.method, row.difference): row for row in means}
    totals = [next((row.rows, row.kept) for row in means if row.difference == difference) for difference in differences]
    kept = (f"{name} {rows} texts, {share:.1%}" for name, (rows, share) in zip(differences, totals, strict=True))
    lines = [
        f"| rank correlation (same heaviest word) | {' | '.join(differences)} |",
        f"|---|{'--:|' * len(differences)}",
    ]
    for method in dict.fromkeys(row.method for row in means):
        cells = (by_method_and_difference[method, difference] for difference in differences)
        lines.append(f"| {method} | {' | '.join(f'{row.correlation:.3f} ({row.heaviest:.0%})' for row in cells)} |")
    return "\n".join([*lines, "", f"Texts that were changed, and how many kept their answer: {', '.join(kept)}."])


def write_stability(reports: Sequence[StabilityReport], out: Path) -> None:
    """Write `stability.json` and `stability.md` to the folder `out`."""
    rows = [{name: None if value != value else value for name, value in asdict(row).items()} for row in reports]
    (out / "stability.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (out / STABILITY).write_text(stability_table(reports) + "\n", encoding="utf-8")
