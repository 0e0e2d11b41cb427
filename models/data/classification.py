"""Labelled texts: the readers of data sets, and the removal of validation texts from training.

A data set is a folder with `train.jsonl.gz` and `validation.jsonl.gz`. Each line is a row
`{"text", "label", "entity"?}`. This module knows no networks.
"""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.text.language import has_text

LABEL_NAMES = {"bearish": "negative", "bullish": "positive"}
"""The task's names for labels that data sets call differently."""


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


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set as a configuration describes it.

    `share` is how often an epoch goes through the training rows. Below 1, the next epoch continues where this one
    stopped. `smoothing` is the label smoothing and `bootstrap` the weight of the model's answer in the training target.
    Both are for noisy labels. `absent_share` is for a data set that lacks some of the task's labels. It is the share of
    texts that would have got such a label. With `named_before`, rows like `Company：what happened` also train the
    target-dependent answer.
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


def read_dataset(root: Path, dataset: Dataset, split: str) -> list[Example]:
    """Return all rows of a split, `train` or `validation`.

    Raises:
        ValueError: A label is not one of the data set's. The message names the line.
    """
    examples = []
    path = root / dataset.name / f"{split}.jsonl.gz"
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


def read_unlabelled_texts(root: Path, source: Dataset) -> list[Example]:
    """Return all lines of `NAME.txt.gz`, without labels."""
    with gzip.open(root / f"{source.name}.txt.gz", "rt", encoding="utf-8") as lines:
        texts = [line.strip() for line in lines]
    return [Example(text, None, None, source.name, source.language, ()) for text in texts if has_text(text)]


def deduplication_key(text: str) -> str:
    """Return the letters and digits of a text, without case, width or links. Copies of a text share it."""
    plain = re.sub(r"https?://\S+", "", unicodedata.normalize("NFKC", text)).casefold()
    return "".join(character for character in plain if character.isalnum())


def remove_leaks(train: Sequence[Example], validation: Sequence[Example]) -> list[Example]:
    """Return the training rows whose text is in no validation row of any data set."""
    held_out = {deduplication_key(example.text) for example in validation}
    return [example for example in train if deduplication_key(example.text) not in held_out]
