"""The project's own capability tests: what a bundle answers to texts whose label holds by construction.

The texts come from the held-out templates and words of the grammars, and go through the tokenizer, the graph and the
calibration that serve. Prints nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.augmentation.noise import NOISES
from models.behaviour.answers import Answers, TextCase
from models.behaviour.cases import LongText, add_noise, long_texts, read_validation_texts, sample_rows
from models.behaviour.groups import measure_groups
from models.behaviour.report import BehaviourReport, KindReport, LongTextReport, NoiseReport
from models.bundle import Bundle
from models.data.grammar import GrammarExample, generate
from models.data.grammar_file import GRAMMARS, LANGUAGES, load_grammars
from models.runtime.protocol import Device

INVARIANCE_ROWS, DATA_ROWS, LONG_ROWS = 300, 100, 40
"""Texts of a language that noise is added to, rows of a data set for the same, and strong sentences of a language."""


def run_suite(
    bundle: Bundle,
    per_template: int = 5,
    seed: int = 0,
    data: Path | None = None,
    device: Device = "cpu",
    grammars: Path = GRAMMARS,
) -> BehaviourReport:
    """Run all capability tests of a classifier of sentiment, with noise also on validation rows of `data`.

    Raises RuntimeError as `open_runtime` does, and GrammarError as `load_grammars` does.
    """
    answers, loaded = Answers(bundle, device), load_grammars(grammars)
    rows = [row for grammar in loaded for row in generate(grammar, seed, per_template, held_out=True)]
    return BehaviourReport(
        bundle=bundle.name,
        version=bundle.version,
        seed=seed,
        per_template=per_template,
        kinds=measure_kinds(answers, rows),
        noise=[*measure_noise(answers, rows, data, seed)],
        long_texts=measure_long_texts(answers, rows, seed),
        groups=measure_groups(answers, loaded, seed),
    )


def cases_of(rows: Sequence[GrammarExample]) -> list[TextCase]:
    return [TextCase(row.text, row.entity) for row in rows]


def measure_kinds(answers: Answers, rows: Sequence[GrammarExample]) -> list[KindReport]:
    """Measure each kind of rows in each language."""
    scores = answers.scores(cases_of(rows))
    wrong = np.asarray([answers.labels[best] != row.label for best, row in zip(scores.argmax(1), rows, strict=True)])
    by_kind: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(rows):
        by_kind.setdefault((row.kind, row.language), []).append(index)
    return [
        report_kind(kind, language, [rows[index].text for index in indices], wrong[indices], scores[indices].max(1))
        for (kind, language), indices in sorted(by_kind.items())
    ]


def report_kind(
    kind: str, language: str, texts: Sequence[str], wrong: NDArray[np.bool_], confidences: NDArray[np.float64]
) -> KindReport:
    sides: dict[str, list[bool]] = {}
    for text, is_wrong in zip(texts, wrong, strict=True):
        sides.setdefault(text, []).append(bool(is_wrong))
    several = [any(side) for side in sides.values() if len(side) > 1]
    return KindReport(
        kind=kind,
        language=language,
        rows=len(texts),
        failures=float(wrong.mean()),
        wrong_confidence=float(confidences[wrong].mean()) if wrong.any() else 0.0,
        texts=len(several),
        text_failures=sum(several) / len(several) if several else 0.0,
    )


def measure_noise(
    answers: Answers, rows: Sequence[GrammarExample], data: Path | None, seed: int
) -> Iterator[NoiseReport]:
    """Yield what each noise changes, on held-out rows and on validation rows."""
    validation = read_validation_texts(data, DATA_ROWS, seed) if data else {}
    for language in LANGUAGES:
        held_out = [row for row in rows if row.language == language]
        for source, cases in (
            ("grammars", cases_of(sample_rows(held_out, INVARIANCE_ROWS, seed))),
            ("data sets", validation.get(language, [])),
        ):
            before = answers.answered(cases)
            for name in NOISES:
                changed = list(add_noise(name, cases, language, seed))
                after = answers.answered([case for _, case in changed])
                changes = [label != before[index] for (index, _), label in zip(changed, after, strict=True)]
                if changes:
                    yield NoiseReport(name, language, source, len(changes), float(np.mean(changes)))


def measure_long_texts(answers: Answers, rows: Sequence[GrammarExample], seed: int) -> list[LongTextReport]:
    """Measure strong sentences in each length and position."""
    by_place: dict[tuple[str, int, str], list[LongText]] = {}
    for language in LANGUAGES:
        for text in long_texts(rows, language, LONG_ROWS, seed):
            by_place.setdefault((text.language, text.words, text.position), []).append(text)
    reports = []
    for (language, words, position), texts in by_place.items():
        labels = answers.answered([TextCase(text.text, None) for text in texts])
        failures = [label != text.label for label, text in zip(labels, texts, strict=True)]
        reports.append(LongTextReport(language, words, position, len(texts), float(np.mean(failures))))
    return reports
