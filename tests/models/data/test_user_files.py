from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from models.data.user_files import DataError, read_dialogues, read_examples, read_replies
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


def test_texts_and_dialogues_are_read_up_to_the_newest_turn_of_the_customer(tmp_path: Path) -> None:
    path = lines(tmp_path / "my.jsonl", {"text": "where?", "label": "a"}, "", {"turns": TURNS, "label": " b "})
    assert read_examples(path) == [
        ((Turn("customer", "where?"),), "a"),
        ((Turn("customer", "hi"), Turn("agent", "hello"), Turn("customer", "my card")), "b"),
    ]
    packed = tmp_path / "my.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
    assert read_examples(packed) == read_examples(path)


EXAMPLE = {"text": "x", "label": "a"}
WANTED = 'each line is a JSON object with "text" and "label", or with "turns" and "label"'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "it is not an object but a list; write each object on a line of its own"),
        ("3", f"it is not an object; {WANTED}"),
        ({"text": "x", "label": " "}, 'its "label" is empty or no string'),
        ({"text": "x", "label": None}, 'its "label" is empty or no string'),
        ({"text": "x", "turns": TURNS, "label": "a"}, 'it has both "text" and "turns"; remove one of them'),
        ({"text": "\u200b", "label": "a"}, 'a "text" is empty or no string'),
        ({"turns": "x", "label": "a"}, '"turns" should be a list of objects, each with "speaker" and "text"'),
        ({"turns": [], "label": "a"}, "it has no turn of the customer"),
        ({"turns": TURNS[1:2], "label": "a"}, "it has no turn of the customer"),
        (
            {"turns": [{"speaker": "bot", "text": "x"}], "label": "a"},
            'a "speaker" is "customer" or "agent", not "bot"',
        ),
    ],
)
def test_an_unusable_line_is_reported(row: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"my.jsonl line 2: {message}")):
        read_examples(lines(tmp_path / "my.jsonl", EXAMPLE, row))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, f'it has no "label"; {WANTED}'),
        ({"label": "a"}, f'it has no "text"; {WANTED}'),
        ({"text": "x", "lable": "a"}, f'it has no "label": rename "lable" to "label"; {WANTED}'),
        ({"text": "x", "Label": "a"}, 'it has no "label": rename "Label" to "label"'),
        ({"text": "x", "intent": "a"}, 'it has no "label": rename "intent" to "label"'),
        ({"utterance": "x", "label": "a"}, 'it has no "text": rename "utterance" to "text"'),
        ({"turn": TURNS, "label": "a"}, 'it has no "turns": rename "turn" to "turns"'),
        ({"dialogue": TURNS, "label": "a"}, 'it has no "turns": rename "dialogue" to "turns"'),
    ],
)
def test_a_missing_key_is_reported_with_the_format_and_the_nearest_key(
    row: object, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=re.escape(f"my.jsonl line 2: {message}")):
        read_examples(lines(tmp_path / "my.jsonl", EXAMPLE, row))


@pytest.mark.parametrize(("label", "text"), [(3, "3"), (1.5, "1.5"), (True, "true")])
def test_a_number_as_label_is_to_be_quoted(label: object, text: str, tmp_path: Path) -> None:
    message = f'line 1: its "label" is {text}, not a string; write "{text}" in quotation marks'
    with pytest.raises(DataError, match=re.escape(message)):
        read_examples(lines(tmp_path / "my.jsonl", {"text": "x", "label": label}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (("text,label", "where?,card"), "line 1: it is not JSON (it looks like a CSV file, which has to be converted)"),
        (("text\tlabel",), "line 1: it is not JSON (it looks like a CSV file"),
        (("[", '{"text": "x", "label": "a"}', "]"), "line 1: it is not JSON (the document spans several lines)"),
        (('{"text": "x" "label": "a"}',), "line 1: it is not JSON (Expecting ',' delimiter at column 14)"),
        (("[" * 100_000,), "line 1: it is not JSON"),
    ],
)
def test_a_file_in_another_format_is_recognised(content: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(message)) as error:
        read_examples(lines(tmp_path / "my.csv", *content))
    assert str(error.value).endswith(WANTED)


def test_an_archive_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "my.xlsx"
    path.write_bytes(b"PK\x03\x04\x14\x00\x06\x00")
    with pytest.raises(DataError, match=r"my.xlsx: it is an archive, such as an .xlsx file; save it as text"):
        read_examples(path)


def test_a_damaged_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl.gz"
    packed = bytearray(gzip.compress(b'{"text": "x", "label": "a"}' * 50))
    packed[15] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(DataError, match=r"my.jsonl.gz: it cannot be read"):
        read_examples(path)


def test_an_unknown_label_is_reported_with_the_nearest_of_many(tmp_path: Path) -> None:
    path = lines(tmp_path / "my.jsonl", {"text": "x", "label": "intent_3"})
    names = [f"intent-{index}" for index in range(13)]
    with pytest.raises(DataError, match='none of the 13 of this label set; the nearest is "intent-3"'):
        read_dialogues(path, names)
    with pytest.raises(DataError, match=r"line 1: its label 'intent_3' is none of intent-0, intent-1$"):
        read_dialogues(path, names[:2])


def test_a_line_in_another_encoding_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    path.write_bytes('{"text": "x", "label": "a"}\n{"text": "银行", "label": "a"}\n'.encode("gbk"))
    with pytest.raises(DataError, match=r"my.jsonl line 2: it is not UTF-8 .*; save the file as UTF-8"):
        read_examples(path)


def test_an_empty_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no examples"):
        read_examples(lines(tmp_path / "my.jsonl", "", " "))
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no replies"):
        read_replies(lines(tmp_path / "replies.txt", ""))


def test_replies_are_lines_or_rows_without_repetitions(tmp_path: Path) -> None:
    assert read_replies(lines(tmp_path / "r.txt", "Hello!", "", " 再见 ")) == ["Hello!", "再见"]
    assert read_replies(lines(tmp_path / "r.jsonl", {"text": "Hello!"}, {"text": "Bye"})) == ["Hello!", "Bye"]
    with pytest.raises(DataError, match=r"r.txt line 3: it repeats the reply of r.txt line 1"):
        read_replies(lines(tmp_path / "r.txt", "Hello!", "Bye", "Hello!"))
    with pytest.raises(DataError, match=r'r\.jsonl line 1: it has no "text": rename "reply" to "text"'):
        read_replies(lines(tmp_path / "r.jsonl", {"reply": "Hello!"}))
