"""A request of the recording as plain data, and the seeded generators of requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import Any

from tests.bench.answers.phrases import Writer

SEED = 18
JSON_TYPE = {"Content-Type": "application/json"}
_MAX_SHOWN_BYTES = 20_000


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose body has the names from before the renames."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return the request as recorded. A large or unreadable body is replaced by its size and digest."""
        try:
            body = self.body.decode() if len(self.body) <= _MAX_SHOWN_BYTES else None
        except UnicodeDecodeError:
            body = None
        if body is None:
            body = f"{len(self.body)} bytes, sha256 {sha256(self.body).hexdigest()}"
        return {"method": self.method, "path": self.path, "headers": self.headers, "body": body}


def post(path: str, document: object, **headers: str) -> Request:
    """Return a POST request with a JSON body. The keyword `accept` becomes the header Accept."""
    return Request("POST", path, encode(document), JSON_TYPE | {name.title(): value for name, value in headers.items()})


def encode(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


def rng_of(group: str) -> Random:
    """Return the generator of a group. Each group has its own, so that its changes affect no other group."""
    return Random(f"{SEED} {group}")


def generate(group: str, count: int, make: Callable[[Random, Writer, int], Request]) -> list[Request]:
    """Return the requests that `make` returns for the numbers from 0 on, with the generator of the group."""
    rng = rng_of(group)
    writer = Writer(rng)
    return [make(rng, writer, number) for number in range(count)]
