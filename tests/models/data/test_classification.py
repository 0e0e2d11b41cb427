from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from models.data.classification import Dataset, Example, find_source, read_dataset

THREE = ("negative", "neutral", "positive")


def example(text: str, label: str, entity: str | None = None, dataset: str = "news") -> Example:
    return Example(text, label, entity, dataset, "en", THREE)


def write(folder: Path, name: str, rows: list[dict[str, str]]) -> None:
    (folder / name).mkdir()
    with gzip.open(folder / name / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_bearish_and_bullish_are_negative_and_positive(tmp_path: Path) -> None:
    write(tmp_path, "tweets", [{"text": "a", "label": "bearish"}, {"text": "b", "label": "bullish"}])
    rows = read_dataset(tmp_path, Dataset("tweets", "en", THREE, "MIT"), "train")
    assert [row.label for row in rows] == ["negative", "positive"]


def test_a_label_may_stand_for_several_labels_of_the_task(tmp_path: Path) -> None:
    write(tmp_path, "posts", [{"text": "a", "label": "not_negative"}, {"text": "b", "label": "negative"}])
    rows = read_dataset(tmp_path, Dataset("posts", "zh", ("negative", "not_negative"), "none"), "train")
    assert [row.labels for row in rows] == [("neutral", "positive"), ("negative",)]
    assert rows[0].alternatives == THREE


def test_a_source_is_found_in_the_folder_or_in_one_of_its_folders(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    write(tmp_path / "more", "posts", [{"text": "a", "label": "negative"}])
    write(tmp_path, "tweets", [{"text": "b", "label": "negative"}])
    for name in ("posts", "tweets"):
        assert len(read_dataset(tmp_path, Dataset(name, "en", THREE, "MIT"), "train")) == 1
    assert find_source(tmp_path, "missing") == tmp_path / "missing"


def test_an_unknown_label_is_reported_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, "reviews", [{"text": "a", "label": "positive"}, {"text": "b", "label": "neutral"}])
    with pytest.raises(ValueError, match="line 2: label 'neutral'"):
        read_dataset(tmp_path, Dataset("reviews", "en", ("negative", "positive"), "MIT"), "train")
