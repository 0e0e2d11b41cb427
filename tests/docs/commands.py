"""The commands that documents show: which are run, which answer they promise, and whether an answer keeps it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import zip_longest
from typing import Any

from tests.docs.markdown import Document, Fence

RUN, SHOWN, ANSWER = "sh", "console", "json"
MORE = "..."
"""In an answer: more elements, more members, or the rest of a string."""

_UNCOMPARED = {"timings_ms", "instance"}
_HERE_DOCUMENT = re.compile(r"<<-?\s*(['\"]?)(\w+)\1(.*?)\n(.*?)^\s*\2\s*$", re.DOTALL | re.MULTILINE)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A script of a document, and the answer that is printed below it."""

    script: str
    line: int
    answer: Any = None

    @property
    def status(self) -> int | None:
        """Return the status that the document promises, or None for any success."""
        is_problem = isinstance(self.answer, dict) and {"status", "code"} <= self.answer.keys()
        return int(self.answer["status"]) if is_problem else None


def blocks_of(document: Document) -> list[Block]:
    """Return the scripts that are run, in order. A JSON fence directly below one is its answer."""
    blocks = []
    lines = document.text.splitlines()
    for fence, after in zip_longest(document.fences, document.fences[1:]):
        if fence.language == RUN:
            blocks.append(Block(fence.text, fence.line, _answer(fence, after, lines)))
    return blocks


def _answer(script: Fence, after: Fence | None, lines: list[str]) -> Any:
    if after is None or after.language != ANSWER or any(lines[script.end - 1 : after.line - 1]):
        return None
    return json.loads(after.text, parse_float=Decimal)


def heed_commands(document: Document) -> Iterator[list[str]]:
    """Yield the arguments of every `heed` command of a document, run or only shown."""
    for fence in document.fences:
        if fence.language in (RUN, SHOWN):
            for words in _simple_commands(fence.text):
                while words and _ASSIGNMENT.fullmatch(words[0]):
                    words = words[1:]
                if words and words[0].rpartition("/")[2] == "heed":
                    yield words[1:]


def _simple_commands(script: str) -> Iterator[list[str]]:
    """Yield the words of each command of a script, without redirections."""
    script = _HERE_DOCUMENT.sub(r"\3", script).replace("\\\n", " ")
    for line in _logical_lines(script):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in lexer:
            if word and set(word) <= set("();<>|&"):
                if words:
                    yield words
                words = ["(redirected)"] if set(word) <= set("<>&") and set(word) & set("<>") else []
            else:
                words.append(word)
        if words:
            yield words


def _logical_lines(script: str) -> Iterator[str]:
    """Yield lines, joined while a quotation is open."""
    pending = ""
    for line in script.splitlines():
        pending += line + "\n"
        try:
            shlex.split(pending, comments=True)
        except ValueError:
            continue
        yield pending
        pending = ""


def differences(printed: Any, real: Any, place: str = "") -> Iterator[str]:
    """Yield what a printed answer promises otherwise than the service answers."""
    if isinstance(printed, dict) and isinstance(real, dict):
        yield from _member_differences(printed, real, place)
    elif isinstance(printed, list) and isinstance(real, list):
        yield from _element_differences(printed, real, place)
    elif not _agree(printed, real):
        yield f"{place or '/'} is {real!r}, and the document has {printed!s}"


def _member_differences(printed: dict[str, Any], real: dict[str, Any], place: str) -> Iterator[str]:
    promised = printed.keys() - {MORE}
    if missing := promised - real.keys():
        yield f"{place or '/'} has no {', '.join(sorted(missing))}"
    if MORE not in printed and (more := real.keys() - promised):
        yield f"{place or '/'} has {', '.join(sorted(more))} too"
    for name in sorted(promised & real.keys()):
        if name not in _UNCOMPARED:
            yield from differences(printed[name], real[name], f"{place}/{name}")
        elif isinstance(printed[name], dict) and printed[name].keys() != real[name].keys():
            yield f"{place}/{name} has the members {', '.join(real[name])}"


def _element_differences(printed: list[Any], real: list[Any], place: str) -> Iterator[str]:
    promised = printed[:-1] if printed and printed[-1] == MORE else printed
    if len(real) < len(promised) or (promised is printed) != (len(real) == len(promised)):
        yield f"{place or '/'} has {len(real)} elements"
    for number, pair in enumerate(zip(promised, real, strict=False)):
        yield from differences(*pair, f"{place}/{number}")


def _agree(printed: Any, real: Any) -> bool:
    if isinstance(printed, bool) or isinstance(real, bool):
        return printed is real
    if isinstance(printed, Decimal) and isinstance(real, int | float):
        exponent = printed.as_tuple().exponent
        return abs(Decimal(real) - printed) < Decimal(10) ** int(exponent)
    if isinstance(printed, str) and isinstance(real, str) and printed.endswith(MORE):
        return real.startswith(printed.removesuffix(MORE))
    return bool(printed == real)
