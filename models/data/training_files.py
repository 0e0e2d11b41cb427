"""The files that a training reads, so that missing ones are named before a model is loaded."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from models.data.classification import Example, find_source
from models.data.dialogues import LabelSet, ReplySet
from models.data.interactions import RETAIL
from models.data.user_files import DataError

MAX_NAMED_FILES = 3
"""Files that an error names."""


def text_files(root: Path, names: Iterable[str]) -> Iterator[Path]:
    """Yield the files of texts without labels."""
    return (find_source(root, f"{name}.txt.gz") for name in names)


def validation_texts(root: Path) -> Iterator[Example]:
    """Yield the validation texts of every data set in `root` or in one of its folders. Rows without a text are skipped.

    Raises:
        DataError: A line is no JSON object.
    """
    for path in sorted([*root.glob("*/validation.jsonl.gz"), *root.glob("*/*/validation.jsonl.gz")]):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    text, entity = row.get("text"), row.get("entity")
                except (ValueError, AttributeError) as error:
                    raise DataError(f"{path} line {number}: no object ({error})") from error
                if text:
                    yield Example(text, None, entity, path.parent.name, "", ())


def dialogue_folders(root: Path, sets: Iterable[LabelSet | ReplySet]) -> Iterator[Path]:
    """Yield the folder of each label set and reply set. A set of a team's examples is a file instead."""
    return (root / source.folder for source in sets)


def interaction_files(root: Path) -> Iterator[Path]:
    """Yield the files of Online Retail."""
    return (root / RETAIL / name for name in ("items.jsonl.gz", "interactions.csv.gz"))


def require_files(paths: Iterable[Path]) -> None:
    """Raise DataError naming the paths that do not exist."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        more = len(missing) - MAX_NAMED_FILES
        rest = f" and {more} more" if more > 0 else ""
        raise DataError(f"training files are missing: {', '.join(missing[:MAX_NAMED_FILES])}{rest}")
