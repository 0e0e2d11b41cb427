"""Users' files: labelled examples for an intent head, texts and dialogues to explain, and replies.

Every error names the file and the line, and says what is wanted. This module knows no models.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

from models.data.classification import LABEL_NAMES
from models.text.language import has_text
from models.text.tokenizer import Speaker, Turn

MAX_EXAMPLES = 200_000
MAX_REPLIES = 20_000
MAX_NAMED_LABELS = 12
"""Labels that an error message lists."""

SYNONYMS = {
    "text": ("utterance", "sentence", "query", "message", "question", "content", "input", "reply", "headline"),
    "turns": ("dialogue", "dialog", "conversation", "messages", "context"),
    "label": ("intent", "category", "class", "target", "tag", "topic"),
}
"""Keys of other formats, which an error message offers to rename."""

EXAMPLE_ROW = 'each line is a JSON object with "text" and "label", or with "turns" and "label"'
TEXT_ROW = 'each line is a JSON object with "text", and "entity" and "label" if they are known'
DIALOGUE_ROW = 'each line is a JSON object with "text" or "turns", and "label" if it is known'
REPLY_ROW = 'each line is a JSON object with "text"'


class DataError(ValueError):
    """A file that cannot be used for training or serving. The message is one line."""


def read_examples(path: Path) -> list[tuple[tuple[Turn, ...], str]]:
    """Return the turns up to the customer's newest turn, and the label, of each line.

    A line is `{"text", "label"}` or `{"turns", "label"}`. Raises DataError naming the line.
    """
    rows = []
    for where, row in _read_rows(path, EXAMPLE_ROW):
        label = _parse_label(where, row)
        rows.append((_parse_turns(where, row, EXAMPLE_ROW), label))
        if len(rows) > MAX_EXAMPLES:
            raise DataError(f"{path.name}: it holds more than {MAX_EXAMPLES:,} examples; split it or remove some")
    if not rows:
        raise DataError(f"{path.name}: it holds no examples; {EXAMPLE_ROW}")
    return rows


@dataclass(frozen=True, slots=True)
class TextRow:
    """A row of a file of texts. `label` is the correct label, or None if it is unknown."""

    text: str
    entity: str | None
    label: str | None


def read_texts(path: Path, labels: Sequence[str]) -> list[TextRow]:
    """Return the texts of a file, with their `entity` and their label, one of `labels`, where they are known.

    A line is `{"text", "entity"?, "label"?}`. Raises DataError naming the line.
    """
    texts = []
    for where, row in _read_rows(path, TEXT_ROW):
        text, entity, label = _parse_text(where, row, TEXT_ROW), row.get("entity"), row.get("label")
        if entity is not None and (not isinstance(entity, str) or not has_text(entity)):
            raise DataError(f'{where}: its "entity" is empty or no string; leave it out if the text has none')
        label = LABEL_NAMES.get(label, label) if isinstance(label, str) else label
        texts.append(TextRow(text, entity, _check_label(where, label, labels)))
    if not texts:
        raise DataError(f"{path.name}: it holds no texts; {TEXT_ROW}")
    return texts


@dataclass(frozen=True, slots=True)
class DialogueRow:
    """A row of a file of dialogues, up to the customer's newest turn.

    `label` is the correct label, or None if it is unknown.
    """

    turns: tuple[Turn, ...]
    label: str | None


def read_dialogues(path: Path, labels: Sequence[str]) -> list[DialogueRow]:
    """Return the dialogues of a file, with their label, one of `labels`, where it is known.

    A line is `{"text", "label"?}` or `{"turns", "label"?}`. Raises DataError naming the line.
    """
    rows = [
        DialogueRow(_parse_turns(where, row, DIALOGUE_ROW), _check_label(where, row.get("label"), labels))
        for where, row in _read_rows(path, DIALOGUE_ROW)
    ]
    if not rows:
        raise DataError(f"{path.name}: it holds no texts; {DIALOGUE_ROW}")
    return rows


def read_replies(path: Path) -> list[str]:
    """Return the replies of a file, one per line.

    A line of a `.jsonl` file is `{"text"}`. A line of any other file is the reply. Raises DataError naming the line.
    """
    if ".jsonl" in path.name:
        lines = [(where, _parse_text(where, row, REPLY_ROW)) for where, row in _read_rows(path, REPLY_ROW)]
    else:
        lines = list(_read_lines(path))
    first_seen: dict[str, str] = {}
    for where, text in lines:
        if not has_text(text):
            raise DataError(f"{where}: it has no text")
        if text in first_seen:
            raise DataError(f"{where}: it repeats the reply of {first_seen[text]}; remove one of them")
        first_seen[text] = where
    if not first_seen:
        raise DataError(f"{path.name}: it holds no replies")
    if len(first_seen) > MAX_REPLIES:
        raise DataError(f"{path.name}: it holds {len(first_seen):,} replies; the limit is {MAX_REPLIES:,}")
    return list(first_seen)


def _parse_text(where: str, row: Mapping[str, Any], wanted: str) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not has_text(text):
        raise _missing(where, "text", row, wanted)
    return text


def _parse_label(where: str, row: Mapping[str, Any]) -> str:
    label = row.get("label")
    if isinstance(label, (bool, int, float)):
        text = json.dumps(label)
        raise DataError(f'{where}: its "label" is {text}, not a string; write "{text}" in quotation marks')
    if not isinstance(label, str) or not label.strip():
        raise _missing(where, "label", row, EXAMPLE_ROW)
    return label.strip()


def _check_label(where: str, label: Any, labels: Sequence[str]) -> str | None:
    if label is None or (isinstance(label, str) and label in labels):
        return label
    expected = ", ".join(labels) if len(labels) <= MAX_NAMED_LABELS else f"the {len(labels)} of this label set"
    near = get_close_matches(str(label), labels, n=1)
    hint = f'; the nearest is "{near[0]}"' if near and len(labels) > MAX_NAMED_LABELS else ""
    raise DataError(f"{where}: its label {label!r} is none of {expected}{hint}")


def _parse_turns(where: str, row: Mapping[str, Any], wanted: str) -> tuple[Turn, ...]:
    if "text" in row and "turns" in row:
        raise DataError(f'{where}: it has both "text" and "turns"; remove one of them')
    if "text" not in row and "turns" not in row:
        key = "turns" if _find_similar("turns", row) and not _find_similar("text", row) else "text"
        raise _missing(where, key, row, wanted)
    items = row.get("turns", [{"speaker": "customer", "text": row.get("text")}])
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f'{where}: "turns" should be a list of objects, each with "speaker" and "text"')
    turns = []
    for item in items:
        speaker, text = item.get("speaker"), item.get("text")
        if speaker not in get_args(Speaker):
            raise DataError(f'{where}: a "speaker" is "customer" or "agent", not {json.dumps(speaker)}')
        if not isinstance(text, str) or not has_text(text):
            raise DataError(f'{where}: a "text" is empty or no string')
        turns.append(Turn(speaker, text))
    if all(turn.speaker != "customer" for turn in turns):
        raise DataError(f"{where}: it has no turn of the customer, whose newest turn is read")
    return tuple(turns[: max(count for count, turn in enumerate(turns, 1) if turn.speaker == "customer")])


def _missing(where: str, key: str, row: Mapping[str, Any], wanted: str) -> DataError:
    """Return the error for a row without a value for `key`, or with one that is no text."""
    if key in row:
        return DataError(f'{where}: its "{key}" is empty or no string; {wanted}')
    similar = _find_similar(key, row)
    hint = f': rename "{similar}" to "{key}"' if similar else ""
    return DataError(f'{where}: it has no "{key}"{hint}; {wanted}')


def _find_similar(key: str, row: Mapping[str, Any]) -> str | None:
    """Return the key of the row that most probably means `key`, or None."""
    unknown = {name.strip().casefold(): name for name in row if name not in (*SYNONYMS, "entity")}
    synonyms = [name for name in SYNONYMS[key] if name in unknown]
    names = get_close_matches(key, unknown, n=1, cutoff=0.7) or synonyms
    return unknown[names[0]] if names else None


def _read_rows(path: Path, wanted: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in _read_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: it is not JSON ({_describe_json_error(line, error)}); {wanted}") from None
        if isinstance(row, list):
            raise DataError(
                f"{where}: it is not an object but a list; write each object on a line of its own, without brackets"
            )
        if not isinstance(row, dict):
            raise DataError(f"{where}: it is not an object; {wanted}")
        yield where, row


def _describe_json_error(line: str, error: Exception) -> str:
    if line in ("[", "{"):
        return "the document spans several lines"
    if not line.startswith(("{", "[", '"')) and any(separator in line for separator in ",;\t"):
        return "it looks like a CSV file, which has to be converted"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error)


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines that are not blank, each after its place."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.name.endswith(".gz") else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name}: it cannot be read ({error})") from None
    if content.startswith(b"PK\x03\x04"):
        raise DataError(f"{path.name}: it is an archive, such as an .xlsx file; save it as text, one row per line")
    for line_number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"{path.name} line {line_number}"
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}: it is not UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
            ) from None
        if text:
            yield where, text
