"""The public names that changed, and a rewriting of JSON text that keeps every other byte.

A rename applies to the routes with a path prefix. It changes a key, or a value of one key.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


class Names(StrEnum):
    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Rename:
    """A rename of a key or, with `key`, of a value of that key."""

    route: str
    before: str
    after: str
    key: str | None = None


_PROBLEM = "urn:heed:problem:"
_REQUEST_KEYS = (
    Rename("/v1/recommend", "newcomers", "min_new_items"),
    Rename("/v1/explain/recommend", "newcomers", "min_new_items"),
    Rename("/v1/intent", "labels", "label_set"),
    Rename("/v1/explain/intent", "labels", "label_set"),
)
_METHOD = Rename("/v1/explain/", "both_ends", "two_sided_occlusion", key="method")

REQUEST_RENAMES = (*_REQUEST_KEYS, _METHOD)
ANSWER_RENAMES = (
    _METHOD,
    Rename("/v1/recommend", "because", "reasons"),
    Rename("/v1/explain/sentiment", "named", "is_entity"),
    Rename("/v1/explain/", "read", "read_span"),
    Rename("/v1/intent", "labels", "label_set"),
    Rename("/v1/explain/intent", "labels", "label_set"),
    Rename("/v1/", "too_much_to_explain", "explanation_too_large", key="code"),
    Rename("/v1/", f"{_PROBLEM}too_much_to_explain", f"{_PROBLEM}explanation_too_large", key="type"),
)

# Matches whole strings, so that no key is recognised inside a text.
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"(\s*:)?', re.DOTALL)


def rewrite_strings(text: str, key: Callable[[str], str], value: Callable[[str, str], str]) -> str:
    """Return JSON text with its keys and string values replaced. Escapes stay as they are.

    `value` receives the last key before the value, and the value. Other text is rewritten where it looks like JSON.
    """
    last = ""

    def replace(match: re.Match[str]) -> str:
        nonlocal last
        string, colon = match.groups()
        if colon is None:
            return f'"{value(last, string)}"'
        last = string
        return f'"{key(string)}"{colon}'

    return _STRING.sub(replace, text)


def rename_request(path: str, body: bytes) -> bytes:
    """Return a body with the new names. A body that is not UTF-8 stays as it is."""
    try:
        return _rename(path, body.decode(), REQUEST_RENAMES).encode()
    except UnicodeDecodeError:
        return body


def rename_answer(path: str, body: str) -> str:
    """Return an answer with the new names, including JSON pointers into the request."""
    return _rename(path, body, ANSWER_RENAMES)


def _rename(path: str, text: str, renames: tuple[Rename, ...]) -> str:
    applicable = [rename for rename in renames if path.startswith(rename.route)]
    keys = {rename.before: rename.after for rename in applicable if rename.key is None}
    values = {(rename.key, rename.before): rename.after for rename in applicable if rename.key is not None}
    segments = {rename.before: rename.after for rename in _REQUEST_KEYS if path.startswith(rename.route)}

    def value(key: str, string: str) -> str:
        if key == "pointer":
            return "/".join(segments.get(segment, segment) for segment in string.split("/"))
        return values.get((key, string), string)

    return rewrite_strings(text, lambda key: keys.get(key, key), value)
