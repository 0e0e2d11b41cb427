from __future__ import annotations

import pytest

from models.data.classification import Example
from models.data.leaks import deduplication_key, remove_leaks

THREE = ("negative", "neutral", "positive")
WORDS = "the board of Acme said on Monday that it had sold the mill"
CHARACTERS = "公司昨晚发布公告称已经收购南方的一家小型工厂"


def example(text: str, label: str = "neutral", dataset: str = "news") -> Example:
    return Example(text, label, None, dataset, "en", THREE)


def test_training_rows_with_the_text_of_a_validation_row_are_removed() -> None:
    train = [example("Acme  soars! https://t.co/1", "positive"), example("Acme falls", "negative")]
    held_out = [example("ACME soars", "positive", dataset="tweets")]
    assert remove_leaks(train, held_out) == train[1:]


def test_copies_of_a_text_share_a_key_despite_case_width_links_and_punctuation() -> None:
    assert deduplication_key("Ａcme, UP 5%! http://x.y/z") == deduplication_key("acme up 5")
    assert deduplication_key("acme up 5") != deduplication_key("acme up 6")


@pytest.mark.parametrize(
    ("shared", "leaks"),
    [
        (" ".join(WORDS.split()[:8]), True),
        (" ".join(WORDS.split()[:7]), False),
        (" ".join(WORDS.upper().split()[3:11]), True),
        (CHARACTERS[:14], True),
        (CHARACTERS[:13], False),
        (f"{CHARACTERS[:7]}，{CHARACTERS[7:14]}", True),
    ],
)
def test_a_training_row_that_shares_eight_words_or_fourteen_characters_is_removed(shared: str, leaks: bool) -> None:
    held_out = [example(WORDS, dataset="tweets"), example(CHARACTERS, dataset="posts")]
    assert remove_leaks([example(f"Yesterday: {shared} 今天")], held_out) == (
        [] if leaks else [example(f"Yesterday: {shared} 今天")]
    )
