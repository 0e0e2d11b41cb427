"""The files that a training reads, so that missing ones are named before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from models.data.classification import find_source
from models.data.dialogues import LabelSet, ReplySet
from models.data.interactions import RETAIL
from models.data.user_files import DataError

MAX_NAMED_FILES = 3
"""Files that an error names."""


def text_files(root: Path, names: Iterable[str]) -> Iterator[Path]:
    """Yield the files of texts without labels."""
    return (find_source(root, f"{name}.txt.gz") for name in names)


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
