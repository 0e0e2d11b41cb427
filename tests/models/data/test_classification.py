from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from models.data.augmentation import concatenate_pair, entities_before, make_epoch
from models.data.classification import Dataset, Example, deduplication_key, read, remove_leaks

THREE = ("negative", "neutral", "positive")


def example(text: str, label: str, entity: str | None = None, dataset: str = "news") -> Example:
    return Example(text, label, entity, dataset, "en", THREE)


def write(folder: Path, name: str, rows: list[dict[str, str]]) -> None:
    (folder / name).mkdir()
    with gzip.open(folder / name / "train.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_bearish_and_bullish_are_negative_and_positive(tmp_path: Path) -> None:
    write(tmp_path, "tweets", [{"text": "a", "label": "bearish"}, {"text": "b", "label": "bullish"}])
    rows = read(tmp_path, Dataset("tweets", "en", THREE, "MIT"), "train")
    assert [row.label for row in rows] == ["negative", "positive"]


def test_a_label_that_a_set_cannot_have_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, "reviews", [{"text": "a", "label": "positive"}, {"text": "b", "label": "neutral"}])
    with pytest.raises(ValueError, match="line 2: label 'neutral'"):
        read(tmp_path, Dataset("reviews", "en", ("negative", "positive"), "MIT"), "train")


def test_training_keeps_no_text_of_any_validation_set() -> None:
    train = [example("Acme  soars! https://t.co/1", "positive"), example("Acme falls", "negative")]
    held_out = [example("ACME soars", "positive", dataset="tweets")]
    assert remove_leaks(train, held_out) == train[1:]


def test_copies_differ_in_case_width_links_and_punctuation_only() -> None:
    assert deduplication_key("Ａcme, UP 5%! http://x.y/z") == deduplication_key("acme up 5")
    assert deduplication_key("acme up 5") != deduplication_key("acme up 6")


def test_a_made_row_holds_both_texts_and_takes_the_label_of_its_target() -> None:
    rows = [example("Acme soars", "positive", "Acme"), example("Beta plunges", "negative", "Beta")]
    for seed in range(40):
        made = concatenate_pair(random.Random(seed), rows)
        assert made.entity is not None
        assert "soars" in made.text
        assert "plunges" in made.text
        own_part = f"{made.entity} {'soars' if made.label == 'positive' else 'plunges'}"
        assert own_part in made.text


def test_a_title_that_names_its_company_first_is_about_that_company() -> None:
    texts = ("永吉股份：拟减持", "晚间公告：永吉：减持", "上涨", "某某某某某某公司：减持")
    rows = [example(text, "negative") for text in texts]
    assert [row.entity for row in entities_before(rows, "：")] == ["永吉股份", "晚间公告"]
    assert entities_before(rows, None) == []


def test_an_epoch_follows_from_its_seed_and_goes_on_where_the_one_before_stopped() -> None:
    rows = [example(f"text {number}", "neutral") for number in range(100)]
    sets = [Dataset("news", "en", THREE, "MIT", share=0.3)]
    epochs = [make_epoch(rows, sets, seed=1, number=number, augment=0.0) for number in range(4)]
    assert [len(part) for part in epochs] == [30] * 4
    assert epochs[0] == make_epoch(rows, sets, seed=1, number=0, augment=0.0)
    assert epochs[0] != make_epoch(rows, sets, seed=2, number=0, augment=0.0)
    seen = Counter(row.text for part in epochs for row in part)
    assert sorted(seen.values()) == [1] * 80 + [2] * 20


def test_a_share_over_one_repeats_rows_evenly() -> None:
    rows = [example(f"text {number}", "neutral") for number in range(10)]
    sets = [Dataset("news", "en", THREE, "MIT", share=2.5)]
    seen = Counter(row.text for row in make_epoch(rows, sets, seed=1, number=0, augment=0.0))
    assert sorted(seen.values()) == [2] * 5 + [3] * 5
