"""A comparison of two recordings. It ignores renames, timings, request ids and prose."""

from __future__ import annotations

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import zip_longest

import numpy as np

from tests.bench.answers.explanation_requests import NPZ
from tests.bench.answers.names import Names, rename_answer, rewrite_strings
from tests.bench.answers.recording import Answer

PROSE = frozenset({"detail", "title"})
"""Keys of sentences for people, which may change."""

ROUTES = frozenset(
    {
        *("/healthz", "/readyz", "/v1/models", "/v1/sentiment", "/v1/intent", "/v1/replies", "/v1/recommend"),
        *("/v1/catalogues", "/v1/catalogues/{name}", "/v1/catalogues/{name}/items"),
        *(f"/v1/explain/{task}" for task in ("sentiment", "intent", "replies", "recommend")),
    }
)

_MODELS = "/v1/models"
_MODELS_PROSE = frozenset({"command"})
_TIMINGS = re.compile(r'"timings_ms"\s*:\s*\{[^{}]*\}')
_NUMBER = re.compile(r":\s*[-+.0-9eE]+")
_CONTEXT = 60


@dataclass(frozen=True, slots=True)
class Comparable:
    """An answer in two parts. `exact` must be equal, `prose` holds the sentences that may differ."""

    exact: str
    prose: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    number: int
    request: str
    before: str
    after: str


@dataclass(slots=True)
class Report:
    """`requests`, `differ` and `reworded` count by the route and status of the recording from before."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    differ: Counter[tuple[str, int]] = field(default_factory=Counter)
    reworded: Counter[tuple[str, int]] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    wordings: dict[tuple[str, str], None] = field(default_factory=dict)


def compare(before: Iterable[Answer], after: Iterable[Answer]) -> Report:
    """Compare two recordings. Raise ValueError if their requests differ."""
    report = Report()
    for old, new in zip_longest(before, after):
        if old is None or new is None or (old.number, old.request) != (new.number, new.request):
            number = (old or new).number
            raise ValueError(f"the recordings differ in their requests from number {number} on")
        _compare(old, new, report)
    return report


def _compare(old: Answer, new: Answer, report: Report) -> None:
    key = (route_of(old), old.status)
    report.requests[key] += 1
    renamed = old.names is Names.BEFORE and new.names is Names.AFTER
    first, second = comparable(old, renamed), comparable(new, False)
    if first.exact != second.exact:
        report.differ[key] += 1
        request = f"{old.request['method']} {old.request['path']} {old.request['body']}"
        report.differences.append(Difference(old.number, request, *_excerpts(first.exact, second.exact)))
    elif first.prose != second.prose:
        report.reworded[key] += 1
        pairs = zip(first.prose, second.prose, strict=True)
        report.wordings |= {(old_text, new_text): None for old_text, new_text in pairs if old_text != new_text}


def comparable(answer: Answer, renamed: bool) -> Comparable:
    """Return status, headers and body as text. `renamed` translates the old names to the new ones."""
    path = str(answer.request["path"])
    prose: list[str] = []
    body = "".join(_exact(path, text, renamed, prose) for text in _parts(answer))
    return Comparable(f"{answer.status} {answer.headers}\n{body}", tuple(prose))


def route_of(answer: Answer) -> str:
    """Return the method and the route. Every unknown route is `other`."""
    path = answer.request["path"].partition("?")[0]
    path = re.sub(r"^/v1/catalogues/[^/]+", "/v1/catalogues/{name}", path)
    return f"{answer.request['method']} {path if path in ROUTES else 'other'}"


def _parts(answer: Answer) -> Iterator[str]:
    """Yield the body. For a file of arrays, yield its JSON answer, then the name and the digest of each array."""
    if answer.headers.get("content-type") != NPZ:
        yield answer.body.decode(errors="backslashreplace")
        return
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "answer.npy":
                yield str(np.load(io.BytesIO(content)))
            else:
                yield f"\n{name} {sha256(content).hexdigest()}"


def _exact(path: str, text: str, renamed: bool, prose: list[str]) -> str:
    text = _TIMINGS.sub(lambda match: _NUMBER.sub(":0", match.group()), text)
    if renamed:
        text = rename_answer(path, text)
    masked = PROSE | _MODELS_PROSE if path.startswith(_MODELS) else PROSE

    def value(key: str, string: str) -> str:
        if key in masked:
            prose.append(string)
            return "…"
        return "…" if key == "instance" and string.startswith("urn:heed:request:") else string

    return rewrite_strings(text, lambda key: key, value)


def _excerpts(before: str, after: str) -> tuple[str, str]:
    """Return both texts around the first character that differs."""
    pairs = enumerate(zip(before, after, strict=False))
    first = next((index for index, (old, new) in pairs if old != new), min(len(before), len(after)))
    start = max(0, first - _CONTEXT)
    return before[start : first + _CONTEXT], after[start : first + _CONTEXT]


def render(report: Report, limit: int) -> Iterator[str]:
    """Yield the lines of the report, with at most `limit` differences and as many new wordings."""
    yield f"{'route':36} {'status':>6} {'requests':>8} {'differ':>6} {'reworded':>8}"
    for key, count in sorted(report.requests.items()):
        route, status = key
        yield f"{route:36} {status:6} {count:8} {report.differ[key]:6} {report.reworded[key]:8}"
    differ, reworded = report.differ.total(), report.reworded.total()
    yield f"{'all':36} {'':6} {report.requests.total():8} {differ:6} {reworded:8}"
    for difference in report.differences[:limit]:
        yield f"\n{difference.number}: {difference.request[:300]}"
        yield f"  before: {difference.before}\n  after:  {difference.after}"
    for old, new in list(report.wordings)[:limit]:
        yield f"\nreworded: {old}\n      to: {new}"
