from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from models.data.augmentation import concatenate_pair, extract_leading_entities, make_epoch
from models.data.classification import Dataset, Example, read_dataset
from models.data.leaks import deduplication_key, remove_leaks

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


def test_an_unknown_label_is_reported_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, "reviews", [{"text": "a", "label": "positive"}, {"text": "b", "label": "neutral"}])
    with pytest.raises(ValueError, match="line 2: label 'neutral'"):
        read_dataset(tmp_path, Dataset("reviews", "en", ("negative", "positive"), "MIT"), "train")


def test_training_rows_with_the_text_of_a_validation_row_are_removed() -> None:
    train = [example("Acme  soars! https://t.co/1", "positive"), example("Acme falls", "negative")]
    held_out = [example("ACME soars", "positive", dataset="tweets")]
    assert remove_leaks(train, held_out) == train[1:]


def test_copies_of_a_text_share_a_key_despite_case_width_links_and_punctuation() -> None:
    assert deduplication_key("Ａcme, UP 5%! http://x.y/z") == deduplication_key("acme up 5")
    assert deduplication_key("acme up 5") != deduplication_key("acme up 6")


def test_a_concatenated_row_has_both_texts_and_the_label_of_its_target() -> None:
    rows = [example("Acme soars", "positive", "Acme"), example("Beta plunges", "negative", "Beta")]
    for seed in range(40):
        row = concatenate_pair(random.Random(seed), rows)
        assert row.entity is not None
        assert "soars" in row.text
        assert "plunges" in row.text
        target_half = f"{row.entity} {'soars' if row.label == 'positive' else 'plunges'}"
        assert target_half in row.text


def test_a_leading_company_name_becomes_the_entity() -> None:
    texts = ("永吉股份：拟减持", "晚间公告：永吉：减持", "上涨", "某某某某某某公司：减持")
    rows = [example(text, "negative") for text in texts]
    assert [row.entity for row in extract_leading_entities(rows, "：")] == ["永吉股份", "晚间公告"]
    assert extract_leading_entities(rows, None) == []


def test_an_epoch_depends_on_its_seed_and_continues_after_the_previous_epoch() -> None:
    rows = [example(f"text {number}", "neutral") for number in range(100)]
    sets = [Dataset("news", "en", THREE, "MIT", share=0.3)]
    epochs = [make_epoch(rows, sets, seed=1, epoch=epoch, augment=0.0) for epoch in range(4)]
    assert [len(epoch) for epoch in epochs] == [30] * 4
    assert epochs[0] == make_epoch(rows, sets, seed=1, epoch=0, augment=0.0)
    assert epochs[0] != make_epoch(rows, sets, seed=2, epoch=0, augment=0.0)
    seen = Counter(row.text for epoch in epochs for row in epoch)
    assert sorted(seen.values()) == [1] * 80 + [2] * 20


def test_a_share_above_one_repeats_rows_evenly() -> None:
    rows = [example(f"text {number}", "neutral") for number in range(10)]
    sets = [Dataset("news", "en", THREE, "MIT", share=2.5)]
    seen = Counter(row.text for row in make_epoch(rows, sets, seed=1, epoch=0, augment=0.0))
    assert sorted(seen.values()) == [2] * 5 + [3] * 5
