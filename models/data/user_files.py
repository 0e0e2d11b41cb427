"""A team's own files: labelled examples for a head, and replies for a set, each wrong line named.

Knows files and what a line of them may hold; nothing of models.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from models.data.classification import LABEL_NAMES
from models.text.language import has_text
from models.text.tokenizer import Speaker, Turn

MAX_EXAMPLES = 200_000
MAX_REPLIES = 20_000
MAX_NAMED_LINES = 12
"""Labels that an error names."""


class DataError(ValueError):
    """A file that cannot be learned from or served; the message is one line."""


def read_examples(path: Path) -> list[tuple[tuple[Turn, ...], str]]:
    """Rows `{"text", "label"}` or `{"turns", "label"}`, a line each: turns up to the customer's newest, and the label.

    Raises DataError naming the line.
    """
    rows = []
    for where, row in _rows(path):
        label = row.get("label")
        if not isinstance(label, str) or not label.strip():
            raise DataError(f"{where}: it has no label")
        rows.append((_turns(where, row), label.strip()))
        if len(rows) > MAX_EXAMPLES:
            raise DataError(f"{path.name}: more than {MAX_EXAMPLES:,} examples")
    if not rows:
        raise DataError(f"{path.name}: it holds no examples")
    return rows


@dataclass(frozen=True, slots=True)
class Text:
    """One row of a file of texts; `label` is the right one, where it is known."""

    text: str
    entity: str | None
    label: str | None


def read_texts(path: Path, labels: Sequence[str]) -> list[Text]:
    """Rows `{"text"}`, with an `entity` and one of `labels` where they are known, a line each.

    Raises DataError naming the line.
    """
    texts = []
    for where, row in _rows(path):
        text, entity, label = row.get("text"), row.get("entity"), row.get("label")
        if not isinstance(text, str) or not has_text(text):
            raise DataError(f"{where}: it has no text")
        if entity is not None and (not isinstance(entity, str) or not has_text(entity)):
            raise DataError(f"{where}: its entity is empty")
        label = LABEL_NAMES.get(label, label) if isinstance(label, str) else label
        texts.append(Text(text, entity, _known(where, label, labels)))
    if not texts:
        raise DataError(f"{path.name}: it holds no texts")
    return texts


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One row of a file of dialogues, up to the customer's newest turn; `label` is the right one, where it is known."""

    turns: tuple[Turn, ...]
    label: str | None


def read_dialogues(path: Path, labels: Sequence[str]) -> list[Dialogue]:
    """Rows `{"text"}` or `{"turns"}`, with one of `labels` where it is known, a line each.

    Raises DataError naming the line.
    """
    rows = [Dialogue(_turns(where, row), _known(where, row.get("label"), labels)) for where, row in _rows(path)]
    if not rows:
        raise DataError(f"{path.name}: it holds no texts")
    return rows


def read_replies(path: Path) -> list[str]:
    """Replies, a line each: as they are, or in a `.jsonl` as `{"text"}`. Raises DataError naming the line."""
    if ".jsonl" in path.name:
        replies = [(where, row.get("text")) for where, row in _rows(path)]
    else:
        replies = [(where, line) for where, line in _lines(path)]
    seen: dict[str, str] = {}
    for where, text in replies:
        if not isinstance(text, str) or not has_text(text):
            raise DataError(f"{where}: it has no text")
        if text in seen:
            raise DataError(f"{where}: the same reply as {seen[text]}")
        seen[text] = where
    if not seen:
        raise DataError(f"{path.name}: it holds no replies")
    if len(seen) > MAX_REPLIES:
        raise DataError(f"{path.name}: {len(seen):,} replies; {MAX_REPLIES:,} are possible")
    return list(seen)


def _known(where: str, label: Any, labels: Sequence[str]) -> str | None:
    if label is None or (isinstance(label, str) and label in labels):
        return label
    named = ", ".join(labels) if len(labels) <= MAX_NAMED_LINES else f"the {len(labels)} of this label set"
    raise DataError(f"{where}: its label {label!r} is none of {named}")


def _turns(where: str, row: dict[str, Any]) -> tuple[Turn, ...]:
    if ("text" in row) == ("turns" in row):
        raise DataError(f"{where}: it should have either a text or turns")
    given = row.get("turns", [{"speaker": "customer", "text": row.get("text")}])
    if not isinstance(given, list) or not all(isinstance(turn, dict) for turn in given):
        raise DataError(f"{where}: turns should be a list of objects with a speaker and a text")
    turns = []
    for turn in given:
        speaker, text = turn.get("speaker"), turn.get("text")
        if speaker not in get_args(Speaker):
            raise DataError(f"{where}: a speaker is customer or agent, not {speaker!r}")
        if not isinstance(text, str) or not has_text(text):
            raise DataError(f"{where}: a text is empty")
        turns.append(Turn(speaker, text))
    if all(turn.speaker != "customer" for turn in turns):
        raise DataError(f"{where}: it has no turn of the customer")
    return tuple(turns[: max(number for number, turn in enumerate(turns, 1) if turn.speaker == "customer")])


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, line in _lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: it is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}: it is not an object")
        yield where, row


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines that hold something, each with its place."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.name.endswith(".gz") else content
    except (OSError, EOFError) as error:
        raise DataError(f"{path.name}: it cannot be read ({error})") from None
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        where = f"{path.name} line {number}"
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: it is not UTF-8 ({error.reason} at byte {error.start})") from None
        if text:
            yield where, text
