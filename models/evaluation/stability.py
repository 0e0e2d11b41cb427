"""Stability: whether a method weighs words alike where nothing that matters is different.

Two kinds of difference: the served graph's rounding, against its own weights in fp32, and changes of a text that keep
every word of it, the case of one word, the period at its end, white space. Alike is the order of the words by weight
(Spearman's rank correlation) and which of them is the heaviest. Knows explanations; prints nothing.
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
from models.evaluation.faithfulness import rankable
from models.explain.explainer import METHODS, Explainer, MethodName, attribute_to_words
from models.explain.instance import Instance
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
    """One method's weights on one data set under one difference, in the mean over texts.

    `kept` is the share of the texts whose answer is still the same; of those, `correlation` is that of the words' ranks
    and `heaviest` the share of texts with the same heaviest word.
    """

    dataset: str
    difference: str
    method: MethodName
    rows: int
    kept: float
    correlation: float
    heaviest: float


def measure_stability(
    explainer: Explainer, exact: Explainer, ask: Callable[[Change], Iterable[InstancesBySet]], rows: int
) -> Iterator[StabilityReport]:
    """Every method on `rows` questions of each data set; `exact` answers in fp32, `ask` gives the data sets' questions.

    What a change leaves as it was, such as the case of Chinese, is not counted for it.
    """
    for own in zip(*(ask(change) for change in (unchanged, *CHANGES.values())), strict=True):
        found = zip(*(questions for _, questions in own), strict=True)
        asked = list(islice((one for one in found if rankable(one[0])), rows))
        before = [one[0] for one in asked]
        differences = [Difference(FP32, exact, dict(enumerate(map(exact.rebind, before))))]
        for number, name in enumerate(CHANGES, 1):
            after = {row: one[number] for row, one in enumerate(asked) if text_of(one[number]) != text_of(one[0])}
            differences.append(Difference(name, explainer, after))
        for method in METHODS:
            weights = [attribute_instance(explainer, question, method) for question in before]
            for one in differences:
                pairs = [
                    (weights[row], attribute_instance(one.explainer, question, method))
                    for row, question in one.after.items()
                    if answer_of(question) == before[row].target
                ]
                yield rank_agreement(own[0][0], one.name, method, len(one.after), pairs)


@dataclass(frozen=True, slots=True)
class Difference:
    """What the questions became, by row, and who answers them."""

    name: str
    explainer: Explainer
    after: dict[int, Instance]


def answer_of(question: Instance) -> str:
    return max(question.scores, key=question.scores.__getitem__)


def in_fp32(bundle: Bundle, folder: Path) -> Explainer:
    """By the graph with its own weights in fp32, written to `folder`; raises ValueError as `rewritten`."""
    write_graph(convert_graph(bundle.graph, "fp32"), folder / GRAPH)
    exact = replace(bundle, path=folder)
    return Explainer(exact, Tokenizer.from_bundle(bundle), OnnxRuntime(exact.graph))


def attribute_instance(explainer: Explainer, question: Instance, method: MethodName) -> NDArray[np.float64]:
    return attribute_to_words(question, explainer.attribute(question, method))


def text_of(question: Instance) -> str:
    """The newest turn of a dialogue."""
    return question.encoding.segments[-1].text


def rank_agreement(
    dataset: str,
    difference: str,
    method: MethodName,
    rows: int,
    pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> StabilityReport:
    """Of weights before and after, (words,) each; a word that only one of them has is at the end, and left out."""
    cut = [(before[: len(after)], after[: len(before)]) for before, after in pairs]
    correlations = [correlation(*both) for both in cut]
    return StabilityReport(
        dataset=dataset,
        difference=difference,
        method=method,
        rows=rows,
        kept=len(pairs) / rows if rows else np.nan,
        correlation=mean(correlations),
        heaviest=mean([float(before.argmax() == after.argmax()) for before, after in cut]),
    )


def correlation(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Spearman's, NaN where either has all its words alike."""
    ranks = [rankdata(weights) for weights in (before, after)]
    if any(np.ptp(own) == 0 for own in ranks):
        return float("nan")
    return float(np.corrcoef(ranks)[0, 1])


def mean(values: Sequence[float]) -> float:
    """Of those that are numbers; NaN without any."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def change_case(text: str, entity: str | None) -> str:
    """The first word that has case, outside the entity, begins with the other case."""
    for start, end in word_spans(text):
        first = text[start]
        other = first.lower() if first.isupper() else first.upper()
        if other != first and len(other) == 1 and end - start > 1 and not names(text[start:end], entity):
            return text[:start] + other + text[start + 1 :]
    return text


def names(word: str, entity: str | None) -> bool:
    return entity is not None and word.casefold() in entity.casefold()


def toggle_final_period(text: str, entity: str | None) -> str:
    """Without its period at the end, or with one where none of the text's own marks ends it."""
    bare = text.rstrip()
    if bare.endswith((".", "。")) and has_text(bare[:-1]) and bare[-2] != bare[-1]:
        return bare[:-1]
    if bare[-1:].isalnum():
        return bare + ("。" if HAN.search(bare) else ".")
    return text


def widen_white_space(text: str, entity: str | None) -> str:
    """Spaces before and after, and two for each in between, but for those in the entity's name."""
    parts = re.split(f"({re.escape(entity)})", text, flags=re.IGNORECASE) if entity else [text]
    wide = [part if number % 2 else part.replace(" ", "  ") for number, part in enumerate(parts)]
    return f"  {''.join(wide)} \n"


CHANGES: dict[str, Change] = {"case": change_case, "period": toggle_final_period, "white space": widen_white_space}


def over_sets(every: Sequence[StabilityReport]) -> list[StabilityReport]:
    """Each difference and method in the mean over data sets, every set alike."""
    means = []
    for difference, method in dict.fromkeys((row.difference, row.method) for row in every):
        own = [row for row in every if (row.difference, row.method) == (difference, method)]
        means.append(
            StabilityReport(
                dataset="mean",
                difference=difference,
                method=method,
                rows=sum(row.rows for row in own),
                kept=mean([row.kept for row in own]),
                correlation=mean([row.correlation for row in own]),
                heaviest=mean([row.heaviest for row in own]),
            )
        )
    return means


def stability_table(every: Sequence[StabilityReport]) -> str:
    """Markdown: for each method and difference the rank correlation, and how often the heaviest word is the same."""
    means = over_sets(every)
    differences = list(dict.fromkeys(row.difference for row in means))
    by_both = {(row.method, row.difference): row for row in means}
    told = (next((row.rows, row.kept) for row in means if row.difference == difference) for difference in differences)
    kept = (f"{name} {rows} texts, {share:.1%}" for name, (rows, share) in zip(differences, told, strict=True))
    lines = [
        f"| rank correlation (same heaviest word) | {' | '.join(differences)} |",
        f"|---|{'--:|' * len(differences)}",
    ]
    for method in dict.fromkeys(row.method for row in means):
        cells = (by_both[method, difference] for difference in differences)
        lines.append(f"| {method} | {' | '.join(f'{row.correlation:.3f} ({row.heaviest:.0%})' for row in cells)} |")
    return "\n".join([*lines, "", f"Texts that were changed, and how many kept their answer: {', '.join(kept)}."])


def write_stability(every: Sequence[StabilityReport], out: Path) -> None:
    """`stability.json` and `stability.md` in the folder `out`."""
    rows = [{name: None if value != value else value for name, value in asdict(row).items()} for row in every]
    (out / "stability.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (out / STABILITY).write_text(stability_table(every) + "\n", encoding="utf-8")
