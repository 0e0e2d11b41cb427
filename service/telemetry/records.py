"""Log records as lines: one line per record, for a reader at a terminal or as JSON.

No value can forge or break a line. Control characters, escape sequences and marks of direction are escaped, and long
values are cut, so that a line fits into one atomic write to a pipe.
"""

from __future__ import annotations

import json
import re
import select
from collections.abc import Callable, Mapping
from typing import Any, Literal

LogFormat = Literal["console", "json"]

MAX_LINE_BYTES = select.PIPE_BUF
"""Longest line with its end. Up to this length, processes that share a pipe cannot split each other's lines."""

_TEXT_LIMITS = (1000, 250, 60, 15)  # characters of one value; the first one whose line is short enough
_MAX_LIST_ITEMS = 16
_MAX_ONCE_BYTES = 40
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+-]{1,200}")


def render(record: Mapping[str, Any], form: LogFormat) -> bytes:
    """Return the line of a record, with its end. The record begins with `time`, `level` and `event`."""
    write = _WRITERS[form]
    for max_chars in _TEXT_LIMITS:
        line = write({name: _shorten(value, max_chars) for name, value in record.items()})
        if len(line) <= MAX_LINE_BYTES - _MAX_ONCE_BYTES:
            return line
    first = {name: record[name] for name in ("time", "level", "event")}
    return write({**first, "cut": True})


def _shorten(value: Any, max_chars: int) -> Any:
    """Return the value with its long texts and lists cut, and other objects as texts."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _shorten(value[key], max_chars) for key in list(value)[:_MAX_LIST_ITEMS]}
    if isinstance(value, list | tuple | set | frozenset):
        return [_shorten(item, max_chars) for item in list(value)[:_MAX_LIST_ITEMS]]
    text = str(value)
    return text if len(text) <= max_chars else text[:max_chars] + "..."


def _json_line(record: Mapping[str, Any]) -> bytes:
    return f"{_ascii_json(record)}\n".encode("ascii")


def _console_line(record: Mapping[str, Any]) -> bytes:
    fields = dict(record)
    line = f"{fields.pop('time')} {fields.pop('level'):<8} {fields.pop('event')}"
    line += "".join(f" {name}={_console_value(value)}" for name, value in fields.items())
    return f"{line}\n".encode("utf-8", "backslashreplace")


def _console_value(value: Any) -> str:
    """Return the value without quotes if it is a plain word, and else as JSON. Readable scripts stay readable."""
    if not isinstance(value, str):
        return _ascii_json(value)
    if _PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False) if value.isprintable() else _ascii_json(value)


def _ascii_json(value: Any) -> str:
    """Return JSON of printable ASCII alone."""
    return json.dumps(value)


_WRITERS: Mapping[LogFormat, Callable[[Mapping[str, Any]], bytes]] = {"json": _json_line, "console": _console_line}
