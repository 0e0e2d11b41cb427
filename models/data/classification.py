"""Labelled texts: reading data sets, keeping validation out of training, and the target-dependent augmentations.

A data set is a folder with `train.jsonl.gz` and `validation.jsonl.gz`, a row `{"text", "label", "entity"?}` a line.
Knows nothing of networks.
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
"""What a data set calls a label, where that differs from the task."""


@dataclass(frozen=True, slots=True)
class Example:
    """One text; `among` are the labels its annotators could choose from, none for a text without a label."""

    text: str
    label: str | None
    entity: str | None
    dataset: str
    language: str
    label_choices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """One data set as the configuration names it.

    `share`: how often an epoch goes through its training rows; under 1, the next epoch goes on where this one stopped.
    `smoothing`: label smoothing; `bootstrap`: weight of the model's own answer in the training target (both for
    noisy labels). `absent_share`: for a set without some of the task's labels, the share of its texts that would have
    got one of them, had it been offered. `named_before`: rows like `Company：what happened` also train the
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


def read(root: Path, dataset: Dataset, part: str) -> list[Example]:
    """All rows of one part (`train` or `validation`); raises ValueError naming the row when a label is unknown."""
    examples = []
    path = root / dataset.name / f"{part}.jsonl.gz"
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
    """All lines of `NAME.txt.gz`, without labels."""
    with gzip.open(root / f"{source.name}.txt.gz", "rt", encoding="utf-8") as lines:
        texts = [line.strip() for line in lines]
    return [Example(text, None, None, source.name, source.language, ()) for text in texts if has_text(text)]


def deduplication_key(text: str) -> str:
    """What two copies of a text have in common: letters and digits only, without case, width or links."""
    plain = re.sub(r"https?://\S+", "", unicodedata.normalize("NFKC", text)).casefold()
    return "".join(character for character in plain if character.isalnum())


def remove_leaks(train: Sequence[Example], validation: Sequence[Example]) -> list[Example]:
    """The training rows whose text is in no validation row of any data set."""
    held_out = {deduplication_key(example.text) for example in validation}
    return [example for example in train if deduplication_key(example.text) not in held_out]
