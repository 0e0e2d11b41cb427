from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from models.data.user_files import DataError, read_examples, read_replies
from models.text.tokenizer import Turn

TURNS = [
    {"speaker": "customer", "text": "hi"},
    {"speaker": "agent", "text": "hello"},
    {"speaker": "customer", "text": "my card"},
    {"speaker": "agent", "text": "which one?"},
]


def lines(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_texts_and_dialogues_are_read_up_to_the_customers_newest_turn(tmp_path: Path) -> None:
    path = lines(tmp_path / "my.jsonl", {"text": "where?", "label": "a"}, "", {"turns": TURNS, "label": " b "})
    assert read_examples(path) == [
        ((Turn("customer", "where?"),), "a"),
        ((Turn("customer", "hi"), Turn("agent", "hello"), Turn("customer", "my card")), "b"),
    ]
    packed = tmp_path / "my.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
    assert read_examples(packed) == read_examples(path)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "line 2: it is not JSON"),
        ([1], "line 2: it is not an object"),
        ({"text": "x"}, "line 2: it has no label"),
        ({"text": "x", "label": " "}, "line 2: it has no label"),
        ({"text": "x", "label": 3}, "line 2: it has no label"),
        ({"label": "a"}, "line 2: it should have either a text or turns"),
        ({"text": "x", "turns": TURNS, "label": "a"}, "line 2: it should have either"),
        ({"text": "\u200b", "label": "a"}, "line 2: a text is empty"),
        ({"turns": "x", "label": "a"}, "line 2: turns should be a list"),
        ({"turns": [], "label": "a"}, "line 2: it has no turn of the customer"),
        ({"turns": TURNS[1:2], "label": "a"}, "line 2: it has no turn of the customer"),
        ({"turns": [{"speaker": "bot", "text": "x"}], "label": "a"}, "line 2: a speaker is customer or agent"),
    ],
)
def test_a_wrong_line_is_named(row: object, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        read_examples(lines(tmp_path / "my.jsonl", {"text": "x", "label": "a"}, row))


def test_a_line_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes('{"text": "x", "label": "a"}\n{"text": "银行", "label": "a"}\n'.encode("gbk"))
    with pytest.raises(DataError, match=r"my.jsonl line 2: it is not UTF-8"):
        read_examples(path)


def test_what_holds_nothing_or_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no examples"):
        read_examples(lines(tmp_path / "my.jsonl", "", " "))
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no replies"):
        read_replies(lines(tmp_path / "replies.txt", ""))


def test_replies_come_from_lines_or_rows_each_once(tmp_path: Path) -> None:
    assert read_replies(lines(tmp_path / "r.txt", "Hello!", "", " 再见 ")) == ["Hello!", "再见"]
    assert read_replies(lines(tmp_path / "r.jsonl", {"text": "Hello!"}, {"text": "Bye"})) == ["Hello!", "Bye"]
    with pytest.raises(DataError, match=r"r.txt line 3: the same reply as r.txt line 1"):
        read_replies(lines(tmp_path / "r.txt", "Hello!", "Bye", "Hello!"))
    with pytest.raises(DataError, match=r"r.jsonl line 1: it has no text"):
        read_replies(lines(tmp_path / "r.jsonl", {"reply": "Hello!"}))
