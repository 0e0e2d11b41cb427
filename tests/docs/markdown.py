"""A Markdown document as the tests read it: its fences, sentences, links and anchors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]

_PARSER = MarkdownIt("commonmark").enable("table")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|etc|approx|No)|\b[A-Z])\.$")
_END = re.compile(r"(?<=[.!?])(?:[\"')\]*”’]*)\s+|(?<=[。！？])[”’）]*\s*")
_CJK = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_NOT_IN_ANCHOR = re.compile(r"[^\w\- ]")
_HTML_ID = re.compile(r"""<a\s+(?:id|name)=["']([^"']+)["']""")


@dataclass(frozen=True, slots=True)
class Fence:
    language: str
    text: str
    line: int  # of its first line, counted from 1
    end: int  # the line after it, counted from 1


@dataclass(frozen=True)
class Document:
    path: Path

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def _tokens(self) -> list[Token]:
        return _PARSER.parse(self.text)

    @cached_property
    def fences(self) -> list[Fence]:
        found = []
        for token in self._tokens:
            if token.type == "fence" and token.map is not None:
                found.append(Fence(token.info.strip(), token.content, token.map[0] + 1, token.map[1] + 1))
        return found

    @cached_property
    def sentences(self) -> list[str]:
        """The running text, split. Fences, tables, headings and pictures are left out; inline code is one word."""
        return [sentence for paragraph in self._paragraphs() for sentence in split_sentences(paragraph)]

    @cached_property
    def links(self) -> list[str]:
        """Targets of links and pictures, in document order."""
        targets = []
        for token in _flat(self._tokens):
            target = token.attrGet({"link_open": "href", "image": "src"}.get(token.type, ""))
            if isinstance(target, str):
                targets.append(target)
        return targets

    @cached_property
    def anchors(self) -> set[str]:
        """Anchors as GitHub makes them of headings, and those that are written as HTML."""
        anchors: set[str] = set(_HTML_ID.findall(self.text))
        for before, token in zip(self._tokens, self._tokens[1:], strict=False):
            if before.type == "heading_open":
                slug = _NOT_IN_ANCHOR.sub("", _plain(token).lower()).strip().replace(" ", "-")
                number = next(number for number in range(1_000) if _numbered(slug, number) not in anchors)
                anchors.add(_numbered(slug, number))
        return anchors

    def _paragraphs(self) -> Iterator[str]:
        tables = 0
        for before, token in zip(self._tokens, self._tokens[1:], strict=False):
            tables += {"table_open": 1, "table_close": -1}.get(before.type, 0)
            if before.type == "paragraph_open" and not tables:
                yield _plain(token, code="Code")


def documents(*patterns: str) -> list[Document]:
    """Return the documents that match the patterns, relative to the repository, each once and sorted."""
    return [Document(path) for path in sorted({path for pattern in patterns for path in ROOT.glob(pattern)})]


def split_sentences(text: str) -> list[str]:
    sentences, start = [], 0
    for end in _END.finditer(text):
        if not _ABBREVIATION.search(text, start, end.start()):
            sentences.append(text[start : end.end()].strip())
            start = end.end()
    sentences.append(text[start:].strip())
    return [sentence for sentence in sentences if count_words(sentence)]


def count_words(sentence: str) -> int:
    """Count words; two Chinese characters are one."""
    chinese = len(_CJK.findall(sentence))
    return math.ceil(chinese / 2) + sum(
        any(character.isalnum() for character in word) for word in _CJK.sub(" ", sentence).split()
    )


def _plain(inline: Token, code: str | None = None) -> str:
    """Return what a reader sees of an inline token; `code` stands for inline code where it is given."""
    parts = []
    for token in inline.children or ():
        if token.type == "text":
            parts.append(token.content)
        elif token.type == "code_inline":
            parts.append(code or token.content)
        elif token.type in ("softbreak", "hardbreak"):
            parts.append(" ")
    return "".join(parts)


def _flat(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from token.children or ()


def _numbered(slug: str, number: int) -> str:
    return f"{slug}-{number}" if number else slug
