"""Labelled texts, and the readers of their sources.

A source is a folder with `train.jsonl.gz` and `validation.jsonl.gz`, whose lines are rows `{"text", "label",
"entity"?}`; or a file `NAME.txt.gz` of texts; or a grammar. This module knows no networks.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from models.text.language import has_text

LABEL_NAMES = {"bearish": "negative", "bullish": "positive"}
"""The task's names for labels that data sets call differently."""

LABEL_SETS = {"not_negative": ("neutral", "positive")}
"""Labels of data sets that stand for several labels of the task."""


def labels_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return the labels of the task that a data set's labels stand for."""
    return tuple(dict.fromkeys(label for name in names for label in LABEL_SETS.get(name, (name,))))


@dataclass(frozen=True, slots=True)
class Example:
    """A text with its label, or None without a label.

    `label_choices` are the labels that its annotators chose from. They are empty for a text without a label.
    """

    text: str
    label: str | None
    entity: str | None
    dataset: str
    language: str
    label_choices: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the task that the row's label stands for; none without a label."""
        return () if self.label is None else labels_of((self.label,))

    @property
    def alternatives(self) -> tuple[str, ...]:
        """The labels of the task that the annotators chose from."""
        return labels_of(self.label_choices)


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set as a configuration describes it.

    `share` is how often an epoch goes through the training rows. Below 1, the next epoch continues where this one
    stopped. `smoothing` is the label smoothing and `bootstrap` the weight of the model's answer in the training target.
    Both are for noisy labels. `absent_share` is for a data set that lacks some of the task's labels. It is the share of
    texts that would have got such a label. With `named_before`, rows like `Company：what happened` also train the
    target-dependent answer. `genre` is "headline", "prose" or "social". A set that is not `measured` trains only. The
    texts of a file `NAME.txt.gz` have the label `assumed`. `fillings` is how often each template of the grammar NAME is
    filled.
    """

    name: str
    language: str
    labels: tuple[str, ...]
    licence: str
    share: float = 1.0
    smoothing: float = 0.0
    bootstrap: float = 0.0
    absent_share: float = 0.0
    named_before: str | None = None
    genre: str = ""
    measured: bool = True
    assumed: str | None = None
    fillings: int = 0

    @property
    def has_validation(self) -> bool:
        """True if the source has a validation file that the model is measured on."""
        return self.measured and not self.assumed and not self.fillings


def read_dataset(root: Path, dataset: Dataset, split: str) -> list[Example]:
    """Return all rows of a split, `train` or `validation`.

    Raises:
        ValueError: A label is not one of the data set's. The message names the line.
    """
    examples = []
    path = find_source(root, dataset.name) / f"{split}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                text, label = row["text"], LABEL_NAMES.get(row["label"], row["label"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path} line {number}: no object with a text and a label ({error!r})") from error
            if label not in dataset.labels:
                raise ValueError(f"{path} line {number}: label {row['label']!r} is not one of {dataset.labels}")
            examples.append(Example(text, label, row.get("entity"), dataset.name, dataset.language, dataset.labels))
    return examples


def read_texts(root: Path, source: Dataset) -> list[Example]:
    """Return all lines of `NAME.txt.gz`, with the label that the source assumes, if any."""
    with gzip.open(find_source(root, f"{source.name}.txt.gz"), "rt", encoding="utf-8") as lines:
        texts = [line.strip() for line in lines]
    label, choices = source.assumed, source.labels
    return [Example(text, label, None, source.name, source.language, choices) for text in texts if has_text(text)]


def find_source(root: Path, name: str) -> Path:
    """Return the file or folder `name` in `root` or in one of its folders; `root / name` if there is none."""
    return next((path for path in (root / name, *sorted(root.glob(f"*/{name}"))) if path.exists()), root / name)
