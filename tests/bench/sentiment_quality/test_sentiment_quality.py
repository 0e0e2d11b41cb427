"""The table beside word lists counts what each peer gets right, on whole texts with labels of the task."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.bench.sentiment_quality.__main__ import (
    HEED,
    PYTHON,
    LabelledText,
    ask_peers,
    capability_texts,
    read_sets,
    table,
)


def write_set(folder: Path, *rows: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    with gzip.open(folder / "validation.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def test_sets_of_whole_texts_are_read_from_folders_and_folders_of_folders(tmp_path: Path) -> None:
    write_set(
        tmp_path / "a" / "news", {"text": "Costs fell", "label": "bullish"}, {"text": "亏损", "label": "negative"}
    )
    write_set(
        tmp_path / "b" / "more" / "posts", {"text": "Fine", "label": "neutral"}, {"text": " ", "label": "neutral"}
    )
    write_set(tmp_path / "b" / "more" / "entities", {"text": "Fine", "label": "neutral", "entity": "Acme"})
    write_set(tmp_path / "b" / "more" / "intents", {"text": "Fine", "label": "greeting"})
    texts = list(read_sets([tmp_path / "a", tmp_path / "b"], 10))
    assert {(text.name, text.language, text.label) for text in texts} == {
        ("news", "en", "positive"),
        ("news", "zh", "negative"),
        ("posts", "en", "neutral"),
    }
    assert len(list(read_sets([tmp_path / "a"], 1))) == 1


def test_capabilities_are_those_without_entities() -> None:
    kinds = {text.name for text in capability_texts(1)}
    assert "irony" in kinds
    assert "roles" not in kinds


def test_the_table_has_f1_for_sets_and_failures_for_capabilities() -> None:
    texts = [
        LabelledText("capability", "irony", "zh", "a", "negative"),
        LabelledText("data set", "news", "en", "b", "negative"),
        LabelledText("data set", "news", "en", "c", "positive"),
    ]
    answers = [
        {HEED: "negative", "cnsenti": "neutral"},
        {HEED: "negative", "VADER": "neutral"},
        {HEED: "positive", "VADER": "positive"},
    ]
    lines = table(texts, answers).splitlines()
    assert lines[2] == "| news | en | 2 | macro-F1 (accuracy) | 1.000 (1.000) | 0.500 (0.500) | – | – | – | – |"
    assert lines[3] == "| irony | zh | 1 | failures | 0.0% | – | – | – | – | 100.0% |"


@pytest.mark.skipif(not PYTHON.exists(), reason="needs make .venv/bench-sentiment/installed")
def test_each_peer_knows_a_plain_word() -> None:
    texts = [
        LabelledText("data set", "news", language, text, "positive")
        for language, text in (("en", "This is a great and wonderful day"), ("zh", "服务很好，我非常喜欢"))
    ]
    assert [set(answer.values()) for answer in ask_peers(texts)] == [{"positive"}, {"positive"}]
